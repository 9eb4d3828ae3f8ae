"""A generation request, checked field by field before the engine sees it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline_worker.protocol import Fault
from paceline_worker.window import Overflow

MAX_DRAFT = 64
"""Longest run of drafted tokens a backend must be able to verify in one batch."""

MAX_ALTERNATIVES = 20
"""Most alternatives that are told with a token's log probability."""

_GRAMMARS = ("json_schema", "regex", "lark", "gbnf")
_LEAST_TEMPERATURE = 1e-6
"""A lower one takes the likeliest token as 0 does, and logits divided by it overflow in 32 bits."""
_MAX_BREAKERS = 32


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    @property
    def penalizes(self) -> bool:
        penalties = self.repeat_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return penalties and self.repeat_last_n != 0

    @property
    def dries(self) -> bool:
        """Whether DRY, the penalty on repeating whole sequences, takes part."""
        return self.dry_multiplier != 0.0 and self.dry_penalty_last_n != 0


@dataclass(frozen=True)
class Grammar:
    """What the output must keep to; `source` is JSON text for a `json_schema`."""

    kind: str
    source: str


@dataclass(frozen=True)
class DraftKnobs:
    max_tokens: int = 16
    min_tokens: int = 0
    min_probability: float = 0.0
    exact_tokens: int | None = None
    model: bool = True
    """The draft model may propose."""
    lookup: bool = False
    """Prompt lookup may propose."""


@dataclass(frozen=True)
class GenerateRequest:
    prompt: str | tuple[int, ...]
    add_special: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    sampling: Sampling
    draft: DraftKnobs | None
    context_overflow: Overflow = Overflow.STOP_AT_LIMIT
    context_keep: int | str = 0
    """What of the prompt's beginning stays when other tokens have to go: so many tokens, or this text."""
    logprobs: int | None = None
    """How many alternatives to tell with every token's log probability; None: tell neither."""
    grammar: Grammar | None = None


def parse_generate(params: Mapping[str, Any]) -> GenerateRequest:
    """The request in `params`; raises Fault naming the first field that is wrong."""
    prompt = params.get("prompt")
    if isinstance(prompt, list) and all(_is_int(t) for t in prompt):
        prompt = tuple(prompt)
    elif not isinstance(prompt, str):
        raise Fault.invalid("prompt", "prompt must be a string or an array of token ids")
    stop = params.get("stop") or []
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise Fault.invalid("stop", "stop must be an array of non-empty strings")
    draft = params.get("draft")
    return GenerateRequest(
        prompt=prompt,
        add_special=_flag(params, "add_special", True),
        max_tokens=_optional_integer(params, "max_tokens", least=1),
        stop=tuple(stop),
        ignore_eos=_flag(params, "ignore_eos", False),
        sampling=_sampling(_mapping(params, "sampling")),
        draft=None if draft is None else _draft(_mapping(params, "draft")),
        context_overflow=_overflow(params.get("context_overflow")),
        context_keep=_keep(params, prompt),
        logprobs=_optional_integer(params, "logprobs", least=0, most=MAX_ALTERNATIVES),
        grammar=_grammar(params),
    )


def _sampling(values: Mapping[str, Any]) -> Sampling:
    default = Sampling()
    seed = _optional_integer(values, "seed", least=-(2**63))
    temperature = _number(values, "temperature", default.temperature, least=0.0)
    bias = _mapping(values, "logit_bias")
    try:
        logit_bias = tuple(sorted((int(token), float(value)) for token, value in bias.items()))
    except (TypeError, ValueError, OverflowError):
        raise Fault.invalid("logit_bias", "logit_bias maps token ids to numbers") from None
    if any(not math.isfinite(value) for _, value in logit_bias):
        raise Fault.invalid("logit_bias", "logit_bias values must be finite")
    return Sampling(
        temperature=0.0 if temperature < _LEAST_TEMPERATURE else temperature,
        top_k=_integer(values, "top_k", default.top_k, least=0),
        top_p=_number(values, "top_p", default.top_p, least=0.0, most=1.0),
        min_p=_number(values, "min_p", default.min_p, least=0.0, most=1.0),
        repeat_penalty=_number(values, "repeat_penalty", default.repeat_penalty, least=1e-6),
        presence_penalty=_number(values, "presence_penalty", default.presence_penalty),
        frequency_penalty=_number(values, "frequency_penalty", default.frequency_penalty),
        repeat_last_n=_integer(values, "repeat_last_n", default.repeat_last_n, least=-1),
        typical_p=_number(values, "typical_p", default.typical_p, least=0.0, most=1.0),
        xtc_probability=_number(values, "xtc_probability", default.xtc_probability, least=0.0, most=1.0),
        xtc_threshold=_number(values, "xtc_threshold", default.xtc_threshold, least=0.0, most=1.0),
        dry_multiplier=_number(values, "dry_multiplier", default.dry_multiplier, least=0.0),
        dry_base=_number(values, "dry_base", default.dry_base, least=1.0),
        dry_allowed_length=_integer(values, "dry_allowed_length", default.dry_allowed_length, least=0),
        dry_penalty_last_n=_integer(values, "dry_penalty_last_n", default.dry_penalty_last_n, least=-1),
        dry_sequence_breakers=_breakers(values),
        logit_bias=logit_bias,
        seed=random.getrandbits(32) if seed is None else seed & 0xFFFFFFFF,
    )


def _breakers(values: Mapping[str, Any]) -> tuple[str, ...]:
    name = "dry_sequence_breakers"
    breakers = values.get(name)
    if breakers is None:
        return Sampling().dry_sequence_breakers
    if not isinstance(breakers, list) or not all(isinstance(b, str) and b and "\0" not in b for b in breakers):
        raise Fault.invalid(name, f"{name} must be an array of non-empty strings without NUL")
    if len(breakers) > _MAX_BREAKERS:
        raise Fault.invalid(name, f"{name} has {len(breakers)} strings; at most {_MAX_BREAKERS} are possible")
    return tuple(breakers)


def _grammar(params: Mapping[str, Any]) -> Grammar | None:
    """The text of a grammar; whether it means anything is for llguidance to say."""
    given = params.get("grammar")
    if given is None:
        return None
    if not isinstance(given, dict) or len(given) != 1 or not given.keys() <= set(_GRAMMARS):
        raise Fault.invalid("grammar", f"grammar must be an object with exactly one key of {', '.join(_GRAMMARS)}")
    ((kind, source),) = given.items()
    if kind == "json_schema":
        if not isinstance(source, dict):
            raise Fault.invalid("grammar", "grammar.json_schema must be an object")
        try:
            source = json.dumps(source)
        except RecursionError:
            raise Fault.invalid("grammar", "grammar.json_schema is nested too deeply") from None
    if not isinstance(source, str):
        raise Fault.invalid("grammar", f"grammar.{kind} must be a string")
    return Grammar(kind, source)


def _draft(values: Mapping[str, Any]) -> DraftKnobs:
    default = DraftKnobs()
    return DraftKnobs(
        max_tokens=_integer(values, "max_tokens", default.max_tokens, least=0, most=MAX_DRAFT),
        min_tokens=_integer(values, "min_tokens", default.min_tokens, least=0, most=MAX_DRAFT),
        min_probability=_number(values, "min_probability", default.min_probability, least=0.0, most=1.0),
        exact_tokens=_optional_integer(values, "exact_tokens", least=1, most=MAX_DRAFT),
        model=_flag(values, "model", default.model),
        lookup=_flag(values, "lookup", default.lookup),
    )


def _overflow(value: object) -> Overflow:
    if value is None:
        return Overflow.STOP_AT_LIMIT
    if not isinstance(value, str) or value not in list(Overflow):
        raise Fault.invalid("context_overflow", f"context_overflow must be one of {', '.join(Overflow)}, not {value!r}")
    return Overflow(value)


def _keep(params: Mapping[str, Any], prompt: str | tuple[int, ...]) -> int | str:
    keep = params.get("context_keep")
    if not isinstance(keep, str):
        return _integer(params, "context_keep", 0, least=0)
    if not isinstance(prompt, str) or not prompt.startswith(keep):
        raise Fault.invalid("context_keep", "context_keep must be a number of tokens or text that begins the prompt")
    return keep


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Fault.invalid(name, f"{name} must be an object")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flag(values: Mapping[str, Any], name: str, default: bool) -> bool:
    value = values.get(name, default)
    if not isinstance(value, bool):
        raise Fault.invalid(name, f"{name} must be true or false")
    return value


def _number(
    values: Mapping[str, Any], name: str, default: float, *, least: float = -math.inf, most: float = math.inf
) -> float:
    value = values.get(name)
    if value is None:
        return default
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Fault.invalid(name, f"{name} must be a finite number")
    if not least <= number <= most:
        raise Fault.invalid(name, f"{name} must lie between {least} and {most}, not {value}")
    return number


def _integer(values: Mapping[str, Any], name: str, default: int, *, least: int, most: int = 2**31 - 1) -> int:
    value = _optional_integer(values, name, least=least, most=most)
    return default if value is None else value


def _optional_integer(values: Mapping[str, Any], name: str, *, least: int, most: int = 2**63 - 1) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if not _is_int(value):
        raise Fault.invalid(name, f"{name} must be a whole number")
    if not least <= value <= most:
        raise Fault.invalid(name, f"{name} must lie between {least} and {most}, not {value}")
    return int(value)
