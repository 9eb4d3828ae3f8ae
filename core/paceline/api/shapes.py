"""How answers look: choices of chat and plain completions, `usage`, `stats` and LM Studio's facts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paceline.api.logprobs import Entry, chat_logprobs, text_logprobs
from paceline.serving.generation import Completion, ContextOverflow, GenerateParams, Piece
from paceline.types import Model, ModelKind

if TYPE_CHECKING:
    from paceline.serving.place import LoadedModel
    from paceline.serving.pool import Lease


@dataclass(frozen=True)
class Shape:
    """What differs between chat and plain completions."""

    prompt_field: str
    """The request field the prompt comes from; errors about the prompt name it."""
    id_prefix: str
    object: str
    chunk_object: str
    choice: Callable[[str, str], dict[str, Any]]
    """(whole text, finish reason) -> the choice of a whole answer."""
    chunk_choice: Callable[..., dict[str, Any]]
    """(text or None for the last chunk, finish reason or None) -> the choice of one chunk."""
    logprobs: Callable[[Iterable[Entry]], dict[str, Any]]
    """The `logprobs` of a choice that shows these tokens."""
    opening: dict[str, Any] | None = None
    """The choice of the first chunk of a stream, before any text."""


def _chat_choice(text: str, finish: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}


def _chat_chunk(text: str | None, finish: str | None = None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _text_choice(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish}


CHAT = Shape(
    prompt_field="messages",
    id_prefix="chatcmpl",
    object="chat.completion",
    chunk_object="chat.completion.chunk",
    choice=_chat_choice,
    chunk_choice=_chat_chunk,
    logprobs=chat_logprobs,
    opening={"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None},
)
TEXT = Shape(
    prompt_field="prompt",
    id_prefix="cmpl",
    object="text_completion",
    chunk_object="text_completion",
    choice=_text_choice,
    chunk_choice=_text_choice,
    logprobs=text_logprobs,
)


@dataclass(frozen=True)
class Dialect:
    """Whose route it is. Both carry `stats`; LM Studio's also say which model and runtime answered."""

    names_runtime: bool

    def facts(
        self, lease: Lease, params: GenerateParams, completion: Completion, first_token_s: float | None
    ) -> dict[str, Any]:
        facts: dict[str, Any] = {"stats": _stats(lease, params, completion, first_token_s)}
        if self.names_runtime:
            facts["model_info"] = {
                "arch": lease.model.facts.arch,
                "quant": lease.model.facts.quantization,
                "format": lease.model.format,
                "context_length": lease.context_length,
            }
            facts["runtime"] = {
                "name": lease.runtime.name,
                "version": lease.runtime.version,
                "supported_formats": list(lease.runtime.formats),
            }
        return facts

    def usage(self, completion: Completion) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "total_tokens": completion.prompt_tokens + completion.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": completion.cached_tokens},
        }
        if completion.acceptance is not None:
            usage["completion_tokens_details"] = {
                "accepted_prediction_tokens": completion.acceptance.accepted,
                "rejected_prediction_tokens": completion.acceptance.rejected,
            }
        return usage


OPENAI = Dialect(names_runtime=False)
LMSTUDIO = Dialect(names_runtime=True)


def draft_runs(pieces: Iterable[Piece]) -> list[list[Any]]:
    """`[[text, drafted], …]`: neighbours that agree are one run; the texts joined are the whole text."""
    runs: list[list[Any]] = []
    for piece in pieces:
        if not piece.text:
            continue
        if runs and runs[-1][1] == piece.drafted:
            runs[-1][0] += piece.text
        else:
            runs.append([piece.text, piece.drafted])
    return runs


def openai_model(model: Model) -> dict[str, Any]:
    # `created` is part of OpenAI's shape and unknown here; 0 is what its clients can parse.
    return {"id": model.id, "object": "model", "created": 0, "owned_by": model.publisher}


def lmstudio_model(model: Model, loaded: LoadedModel | None) -> dict[str, Any]:
    """The model object of /api/v0."""
    facts = model.facts
    shape: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "type": facts.kind.value,
        "publisher": model.publisher,
        "arch": facts.arch,
        "compatibility_type": model.format,
        "quantization": facts.quantization,
        "state": "not-loaded" if loaded is None else "loaded",
        "max_context_length": facts.max_context_length,
    }
    if loaded is not None:
        shape["loaded_context_length"] = loaded.context_length
    if facts.capabilities:
        shape["capabilities"] = list(facts.capabilities)
    return shape


def lmstudio_v1_model(model: Model, loaded: LoadedModel | None) -> dict[str, Any]:
    """The model object of /api/v1."""
    facts = model.facts
    instances = [] if loaded is None else [{"id": model.id, "config": load_config(loaded)}]
    return {
        "type": lmstudio_v1_type(model),
        "publisher": model.publisher,
        "key": model.id,
        "display_name": facts.name or model.id,
        "architecture": facts.arch,
        "quantization": {"name": facts.quantization, "bits_per_weight": _bits(facts.quantization)},
        "size_bytes": facts.size_bytes,
        "params_string": _parameters(facts.parameters),
        "loaded_instances": instances,
        "max_context_length": facts.max_context_length,
        "format": model.format,
        "capabilities": {
            "vision": facts.kind is ModelKind.VLM,
            "trained_for_tool_use": "tool_use" in facts.capabilities,
        },
        "description": None,
    }


def load_config(loaded: LoadedModel) -> dict[str, Any]:
    """How a model is loaded, under the names of the load route; what was left to the engine is not there."""
    return {**loaded.config.plain(), "context_length": loaded.context_length, "parallel": loaded.slots}


def lmstudio_v1_type(model: Model) -> str:
    return "embedding" if model.facts.kind is ModelKind.EMBEDDINGS else "llm"


def _stats(lease: Lease, params: GenerateParams, completion: Completion, first_token_s: float | None) -> dict[str, Any]:
    stats: dict[str, Any] = {
        "tokens_per_second": completion.tokens_per_second,
        "time_to_first_token": first_token_s,
        "generation_time": completion.generation_s,
        "stop_reason": completion.stop_reason.value,
    }
    if params.context_overflow is not ContextOverflow.STOP_AT_LIMIT:
        stats["dropped_context_tokens_count"] = completion.context_dropped
    if lease.draft is not None:
        stats["draft_model"] = lease.draft.id
    record = completion.acceptance
    if record is not None:
        stats |= {
            "total_draft_tokens_count": record.drafted,
            "accepted_draft_tokens_count": record.accepted,
            "rejected_draft_tokens_count": record.rejected,
            "ignored_draft_tokens_count": record.ignored,
            "mean_accepted_length": record.mean_accepted_length,
            "longest_verified_draft": len(record.drafted_per_position),
        }
        if record.lookup is not None and params.draft is not None and params.draft.lookup:
            stats |= {
                "total_lookup_tokens_count": record.lookup.drafted,
                "accepted_lookup_tokens_count": record.lookup.accepted,
            }
    if completion.draft_skipped is not None:
        stats["draft_skipped"] = completion.draft_skipped
    return stats


def _bits(quantization: str | None) -> int | None:
    """The nominal width in a quantization's name: Q4_K_M and 4bit have 4, F16 and BF16 16."""
    match = re.search(r"(?:Q|BF|F)(\d+)|(\d+)-?bit", quantization or "", re.IGNORECASE)
    return int(match[1] or match[2]) if match else None


def _parameters(count: int | None) -> str | None:
    """`7B`, `0.5B`, `7.1M`; None for an unknown count."""
    if count is None:
        return None
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size / 2:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return str(count)
