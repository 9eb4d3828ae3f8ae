"""What a generation is asked for and what comes back: the host's side of the worker protocol's `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How the main model's next token is chosen. The defaults are LM Studio's, without its repeat penalty."""

    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_k: int = 40
    """0 keeps all."""
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    """None draws one at random."""

    def frame(self) -> dict[str, Any]:
        values = {k: v for k, v in vars(self).items() if v is not None}
        values["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        return values


@dataclass(frozen=True)
class DraftKnobs:
    """Bounds on how far the draft runs ahead, the classic knobs of LM Studio and llama.cpp.

    Within them the worker decides, by what drafting costs and brings.
    """

    max_tokens: int = 16
    """`maxTokensToDraft`."""
    min_tokens: int = 0
    """`minDraftLengthToConsider`: a shorter draft is not verified."""
    min_probability: float = 0.0
    """`minContinueDraftingProbability`: drafting stops at a token the draft itself thinks less likely."""
    exact_tokens: int | None = None
    """`numDraftTokensExact`: overrules the other three and the worker."""


@dataclass(frozen=True)
class GenerateParams:
    """One request to a loaded model."""

    prompt: str
    max_tokens: int | None = None
    """None: until the model stops or its context is full."""
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    draft: DraftKnobs | None = None
    """None: without a draft, even when one is loaded."""

    def frame(self) -> dict[str, Any]:
        """As the worker protocol has it."""
        frame: dict[str, Any] = {"prompt": self.prompt, "stop": list(self.stop), "sampling": self.sampling.frame()}
        if self.max_tokens is not None:
            frame["max_tokens"] = self.max_tokens
        if self.draft is not None:
            frame["draft"] = dict(vars(self.draft))
        return frame


@dataclass(frozen=True)
class Piece:
    """One token of the output and the text it completed. `drafted`: the draft proposed it and the main model agreed."""

    token: int
    text: str
    drafted: bool


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of one decode step."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @classmethod
    def from_frame(cls, params: Mapping[str, Any]) -> TokenBatch:
        return cls(
            tuple(
                Piece(p[0], p[1] if len(p) > 1 else "", bool(p[2]) if len(p) > 2 else False) for p in params["pieces"]
            )
        )


class StopReason(StrEnum):
    """Why a generation ended; LM Studio's names."""

    EOS_FOUND = "eosFound"
    STOP_STRING_FOUND = "stopStringFound"
    MAX_TOKENS = "maxPredictedTokensReached"
    CONTEXT_LENGTH = "contextLengthReached"
    USER_STOPPED = "userStopped"

    @property
    def finish_reason(self) -> str:
        """OpenAI's `finish_reason`."""
        return "length" if self in (StopReason.MAX_TOKENS, StopReason.CONTEXT_LENGTH) else "stop"


@dataclass(frozen=True)
class AcceptanceRecord:
    """What became of the drafted tokens; the same meaning on every engine (docs/worker-protocol.md)."""

    drafted: int
    accepted: int
    rejected: int
    ignored: int
    rounds: int
    drafted_per_position: tuple[int, ...] = ()
    accepted_per_position: tuple[int, ...] = ()

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted of drafted; None when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def mean_accepted_length(self) -> float | None:
        """Accepted tokens per verification; None when nothing was verified."""
        return self.accepted / self.rounds if self.rounds else None


@dataclass(frozen=True)
class Completion:
    """How a generation ended. Times are seconds on the worker's clock."""

    stop_reason: StopReason
    stop_string: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_s: float
    prompt_s: float
    generation_s: float
    acceptance: AcceptanceRecord | None = None
    draft_skipped: str | None = None
    """Why a draft that was asked for took no part."""

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first over the time they took; None for fewer than two."""
        if self.completion_tokens < 2 or self.generation_s <= 0:
            return None
        return (self.completion_tokens - 1) / self.generation_s

    @classmethod
    def from_frame(cls, result: Mapping[str, Any]) -> Completion:
        record = result.get("acceptance")
        acceptance = None
        if record is not None:
            acceptance = AcceptanceRecord(
                **{k: record[k] for k in ("drafted", "accepted", "rejected", "ignored", "rounds")},
                drafted_per_position=tuple(record.get("drafted_per_position", ())),
                accepted_per_position=tuple(record.get("accepted_per_position", ())),
            )
        return cls(
            stop_reason=StopReason(result["stop_reason"]),
            stop_string=result.get("stop_string"),
            prompt_tokens=result["prompt_tokens"],
            cached_tokens=result.get("cached_tokens", 0),
            completion_tokens=result["completion_tokens"],
            queue_s=result.get("queue_s", 0.0),
            prompt_s=result.get("prompt_s", 0.0),
            generation_s=result.get("generation_s", 0.0),
            acceptance=acceptance,
            draft_skipped=result.get("draft_skipped"),
        )
