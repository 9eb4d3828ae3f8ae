"""What a generation is asked for, checked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from paceline_echo_worker.refusal import Refusal, number

POLICIES = ("stopAtLimit", "truncateMiddle", "rollingWindow")


@dataclass
class Knobs:
    """Who runs ahead, and how far."""

    max_tokens: int = 16
    min_tokens: int = 0
    min_probability: float = 0.75
    exact_tokens: int | None = None
    model: bool = True
    lookup: bool = False


@dataclass
class Request:
    """The parameters of `generate`, but for the prompt."""

    max_tokens: int | None
    stop: list[str]
    ignore_eos: bool
    knobs: Knobs | None
    logprobs: int | None

    @classmethod
    def of(cls, params: dict[str, Any]) -> Request:
        if params.get("grammar") is not None:
            raise Refusal.of("echo says what it was told, whatever the grammar", "unsupported", param="grammar")
        policy = params.get("context_overflow")
        if policy not in (None, "stopAtLimit"):
            known = "echo stops at the end of its context" if policy in POLICIES else "no such policy"
            raise Refusal.of(f"`context_overflow` is {policy!r}: {known}", "invalid_request", param="context_overflow")
        return cls(
            max_tokens=number(params, "max_tokens", None, at_least=1),
            stop=_stop(params),
            ignore_eos=bool(params.get("ignore_eos")),
            knobs=_knobs(params),
            logprobs=number(params, "logprobs", None, at_least=0, at_most=20),
        )


def _knobs(params: dict[str, Any]) -> Knobs | None:
    asked = params.get("draft")
    if asked is None:
        return None
    if not isinstance(asked, dict):
        raise Refusal.of("`draft` is no object", "invalid_request", param="draft")
    knobs = Knobs(**{f.name: asked[f.name] for f in fields(Knobs) if f.name in asked})
    for name, value in vars(knobs).items():
        if name in ("model", "lookup"):
            wrong = not isinstance(value, bool)
        else:
            wrong = value is not None and (not isinstance(value, (int, float)) or not 0 <= value <= 1e6)
        if wrong:
            raise Refusal.of(f"`draft.{name}` is {value!r}", "invalid_request", param=f"draft.{name}")
    return knobs


def _stop(params: dict[str, Any]) -> list[str]:
    stop = params.get("stop") or []
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise Refusal.of("`stop` is no array of strings", "invalid_request", param="stop")
    return stop
