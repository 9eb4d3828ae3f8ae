"""What a generation is asked for and what comes back: the host's side of the worker protocol's `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MAX_LOGPROBS = 20
"""The most alternatives a request may ask for at each token."""

_LEAST_LOGPROB = -9999.0
"""What stands for the logarithm of no probability at all, which JSON cannot say; OpenAI's number."""


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
    """Tokens that the three penalties look back over: -1 is the whole context, 0 is off."""
    typical_p: float = 1.0
    """1 keeps all."""
    xtc_probability: float = 0.0
    """0 is off."""
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    """0 is off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    """-1 looks back over the whole context, 0 is off."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
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
    model: bool = True
    """The draft model proposes."""
    lookup: bool = False
    """Prompt lookup proposes: what followed the same words earlier in the context."""


class GrammarKind(StrEnum):
    """The languages a grammar can be written in; the protocol's names."""

    JSON_SCHEMA = "json_schema"
    GBNF = "gbnf"


@dataclass(frozen=True)
class Grammar:
    """What the output must match, enforced at every token."""

    kind: GrammarKind
    source: Mapping[str, Any] | str
    """An object for a JSON schema, a text otherwise."""


class ContextOverflow(StrEnum):
    """What happens when prompt and output outgrow the context; LM Studio's names."""

    STOP_AT_LIMIT = "stopAtLimit"
    TRUNCATE_MIDDLE = "truncateMiddle"
    ROLLING_WINDOW = "rollingWindow"


@dataclass(frozen=True)
class GenerateParams:
    """One request to a loaded model."""

    prompt: str
    max_tokens: int | None = None
    """None: until the model stops or its context is full."""
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    draft: DraftKnobs | None = None
    """None: nothing is drafted, even when a draft model is loaded."""
    logprobs: int | None = None
    """How many alternatives come with each token's log probability; None: no log probabilities."""
    grammar: Grammar | None = None
    context_overflow: ContextOverflow = ContextOverflow.STOP_AT_LIMIT
    context_keep: str = ""
    """The beginning of the prompt that stays when the context overflows."""

    @property
    def needs(self) -> dict[str, str]:
        """The features that a worker must have for this, each with the parameter that asks for it."""
        asked = {
            "logprobs": ("logprobs", self.logprobs is not None),
            "grammar": ("grammar", self.grammar is not None),
            "lookup": ("draft.lookup", self.draft is not None and self.draft.lookup),
            "overflow": ("context_overflow", self.context_overflow is not ContextOverflow.STOP_AT_LIMIT),
        }
        return {feature: param for feature, (param, wanted) in asked.items() if wanted}

    def frame(self) -> dict[str, Any]:
        """As the worker protocol has it."""
        frame: dict[str, Any] = {"prompt": self.prompt, "stop": list(self.stop), "sampling": self.sampling.frame()}
        if self.max_tokens is not None:
            frame["max_tokens"] = self.max_tokens
        if self.draft is not None:
            frame["draft"] = dict(vars(self.draft))
        if self.logprobs is not None:
            frame["logprobs"] = self.logprobs
        if self.grammar is not None:
            frame["grammar"] = {self.grammar.kind.value: self.grammar.source}
        if self.context_overflow is not ContextOverflow.STOP_AT_LIMIT:
            frame["context_overflow"] = self.context_overflow.value
            if self.context_keep:
                frame["context_keep"] = self.context_keep
        return frame


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the logarithm of its probability, before any sampling option changed the distribution."""

    token: int
    logprob: float
    bytes: bytes
    """The token's own bytes, which need not be whole characters."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens at its place, the likeliest first; those have no alternatives of their own."""

    @classmethod
    def from_frame(cls, token: int, value: Mapping[str, Any]) -> TokenLogprob:
        top = tuple(cls(t, _logprob(logprob), bytes(data)) for t, logprob, data in value["top"])
        return cls(token, _logprob(value["logprob"]), bytes(value["bytes"]), top)


@dataclass(frozen=True)
class Piece:
    """One token of the output and the text it completed. `drafted`: the draft proposed it and the main model agreed."""

    token: int
    text: str
    drafted: bool
    logprob: TokenLogprob | None = None
    """None unless asked for."""


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of one decode step."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @classmethod
    def from_frame(cls, params: Mapping[str, Any]) -> TokenBatch:
        return cls(tuple(_piece(*fields) for fields in params["pieces"]))


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
class LookupRecord:
    """The part of an acceptance record that prompt lookup proposed."""

    drafted: int
    accepted: int


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
    lookup: LookupRecord | None = None
    """None from a worker without prompt lookup."""

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
    context_dropped: int = 0
    """Tokens that were dropped to make room, of the prompt and later."""

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
            lookup = record.get("lookup")
            acceptance = AcceptanceRecord(
                **{k: record[k] for k in ("drafted", "accepted", "rejected", "ignored", "rounds")},
                drafted_per_position=tuple(record.get("drafted_per_position", ())),
                accepted_per_position=tuple(record.get("accepted_per_position", ())),
                lookup=None if lookup is None else LookupRecord(lookup["drafted"], lookup["accepted"]),
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
            context_dropped=result.get("context_dropped", 0),
        )


def _piece(token: int, text: str = "", drafted: bool = False, logprob: Mapping[str, Any] | None = None) -> Piece:
    return Piece(token, text, drafted, None if logprob is None else TokenLogprob.from_frame(token, logprob))


def _logprob(value: float | None) -> float:
    return _LEAST_LOGPROB if value is None else max(float(value), _LEAST_LOGPROB)
