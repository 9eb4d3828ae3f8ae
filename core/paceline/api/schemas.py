"""The requests of the API, and what of them the host can serve. pydantic lives here and nowhere behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from paceline.api.body import Schema
from paceline.api.errors import ApiError
from paceline.api.structured import ResponseFormat, grammar_of
from paceline.loading import LoadConfig, LoraAdapter
from paceline.serving.generation import MAX_LOGPROBS, ContextOverflow, DraftKnobs, GenerateParams, Grammar, Sampling

MAX_MESSAGES = 10_000
MAX_INPUTS = 2048
MAX_TEXT = 1 << 20
"""Characters of a text that is tokenized, and tokens of one that is put together: streams stand still meanwhile."""
MAX_STOPS = 64
MAX_BIASES = 10_000
MAX_BREAKERS = 32
_INT32 = 2**31 - 1

Count = Annotated[int, Field(le=_INT32)]


class StreamOptions(Schema):
    include_usage: bool | None = None


class Speculative(Schema):
    """The classic draft knobs under LM Studio's names, prompt lookup, and a wish to see which tokens were drafted."""

    max_tokens: Annotated[int, Field(alias="maxTokensToDraft", ge=1, le=64)] = 16
    min_tokens: Annotated[int, Field(alias="minDraftLengthToConsider", ge=0, le=64)] = 0
    min_probability: Annotated[float, Field(alias="minContinueDraftingProbability", ge=0, le=1)] = 0.0
    exact_tokens: Annotated[int | None, Field(alias="numDraftTokensExact", ge=1, le=64)] = None
    lookup: Annotated[bool | None, Field(alias="promptLookup")] = None
    mark_drafted: bool = False

    def knobs(self, *, model: bool) -> DraftKnobs | None:
        """As the serving room takes them; None when neither a draft model nor prompt lookup is to propose."""
        lookup = bool(self.lookup)
        if not (model or lookup):
            return None
        return DraftKnobs(
            self.max_tokens, self.min_tokens, self.min_probability, self.exact_tokens, model=model, lookup=lookup
        )


class ServedRequest(Schema):
    """A request with fields of which not all values are served."""

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        if isinstance(value, dict):
            refuse_unserved(value)
        return value


class GenerationRequest(ServedRequest):
    """What chat and plain completions have in common. Null means absent."""

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    stop: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_INT32)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=_INT32)] | None = None
    typical_p: Annotated[float, Field(ge=0, le=1)] | None = None
    xtc_probability: Annotated[float, Field(ge=0, le=1)] | None = None
    xtc_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=100)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=0, le=_INT32)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, le=_INT32)] | None = None
    dry_sequence_breakers: tuple[str, ...] | None = None
    logit_bias: dict[int, float] | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = None
    context_overflow: Annotated[
        Literal["stopAtLimit", "truncateMiddle", "rollingWindow"] | None, Field(alias="contextOverflowPolicy")
    ] = None
    draft_model: Annotated[str, Field(max_length=1024)] | None = None
    ttl: Annotated[int, Field(ge=1, le=_INT32)] | None = None
    speculative: Speculative | None = None
    _grammar: tuple[Grammar, str] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> tuple[str, ...]:
        stops = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
            raise PydanticCustomError("stop_type", "Input should be a string or a list of strings")
        if len(stops) > MAX_STOPS or any(len(s) > 4096 for s in stops):
            raise PydanticCustomError("stop_size", f"At most {MAX_STOPS} strings of 4096 characters each")
        # An empty stop string would end every answer before it begins; clients send it to mean none.
        return tuple(s for s in stops if s)

    @field_validator("dry_sequence_breakers", mode="before")
    @classmethod
    def _breakers(cls, value: Any) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(s, str) for s in value):
            raise PydanticCustomError("breakers_type", "Input should be a list of strings")
        if len(value) > MAX_BREAKERS or not all(0 < len(s) <= 256 for s in value):
            raise PydanticCustomError("breakers_size", f"At most {MAX_BREAKERS} strings of 1 to 256 characters each")
        return tuple(value)

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases(cls, value: Any) -> dict[int, float] | None:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise PydanticCustomError("logit_bias_type", "Input should be an object of token ids and numbers")
        if len(value) > MAX_BIASES:
            raise PydanticCustomError("logit_bias_size", f"At most {MAX_BIASES} tokens can be biased")
        biases: dict[int, float] = {}
        for key, bias in value.items():
            if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= _INT32):
                raise PydanticCustomError("logit_bias_key", f"{key[:50]!r} is not a token id")
            if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
                raise PydanticCustomError("logit_bias_value", f"The bias of token {key} should be from -100 to 100")
            biases[int(key)] = float(bias)
        return biases

    @model_validator(mode="after")
    def _lengths(self) -> GenerationRequest:
        for name in ("max_tokens", "max_completion_tokens"):
            value = getattr(self, name, None)
            if value is not None and value != -1 and value < 1:
                raise ApiError(
                    400, f"{name}: Input should be at least 1, or -1 for no limit.", code="invalid_value", param=name
                )
        self._grammar = grammar_of(self.response_format, self.grammar)
        return self

    @property
    def token_limit(self) -> int | None:
        """The most tokens wanted; None is without limit."""
        return None if self.max_tokens in (None, -1) else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives come with each token's log probability; None: no log probabilities are wanted."""
        return None

    @property
    def fields(self) -> dict[str, str]:
        """The request's fields behind the parameters of the worker protocol, for errors that name one."""
        return {
            "grammar": self._grammar[1] if self._grammar else "grammar",
            "draft.lookup": "speculative.promptLookup",
            "context_overflow": "contextOverflowPolicy",
        }

    def params(self, prompt: str) -> GenerateParams:
        """As the serving room takes it. Sampling fields that are absent have `Sampling`'s defaults."""
        wanted = {
            "temperature": self.temperature,
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "repeat_last_n": self.repeat_last_n,
            "typical_p": self.typical_p,
            "xtc_probability": self.xtc_probability,
            "xtc_threshold": self.xtc_threshold,
            "dry_multiplier": self.dry_multiplier,
            "dry_base": self.dry_base,
            "dry_allowed_length": self.dry_allowed_length,
            "dry_penalty_last_n": self.dry_penalty_last_n,
            "dry_sequence_breakers": self.dry_sequence_breakers,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            # -1 is llama.cpp's and LM Studio's way to ask for a random seed.
            "seed": None if self.seed == -1 else self.seed,
        }
        given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
        return GenerateParams(
            prompt=prompt,
            max_tokens=self.token_limit,
            stop=self.stop,
            sampling=Sampling(**given),
            draft=(self.speculative or Speculative()).knobs(model=bool(self.draft_model)),
            logprobs=self.alternatives,
            grammar=self._grammar[0] if self._grammar else None,
            context_overflow=ContextOverflow(self.context_overflow or ContextOverflow.STOP_AT_LIMIT),
        )


class ChatMessage(Schema):
    """One message; `content` is a string or a list of `{"type": "text", "text": …}`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, str]]
    name: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _content(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("role") in ("tool", "function") or value.get("tool_calls") or value.get("function_call"):
            raise PydanticCustomError("not_served", "Messages of tools and tool calls are not served yet")
        content = value.get("content")
        if content is None and value.get("role") == "assistant":
            content = ""
        if isinstance(content, list):
            content = [_part(part, index) for index, part in enumerate(content)]
        return {**value, "content": content} if content is not None else value

    @field_validator("content", mode="before")
    @classmethod
    def _content_type(cls, value: Any) -> Any:
        if not isinstance(value, (str, list)):
            raise PydanticCustomError("content_type", "Input should be a string or a list of text parts")
        return value

    def plain(self) -> dict[str, Any]:
        """As chat templates take it: what is absent is not there."""
        return {name: value for name, value in self if value is not None}


class ChatRequest(GenerationRequest):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _alternatives_of_something(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(
                400, "top_logprobs: it needs `logprobs: true` beside it.", code="invalid_value", param="top_logprobs"
            )
        return self

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return None if limit == -1 else limit


class CompletionRequest(GenerationRequest):
    prompt: str
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    top_logprobs: None = None

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @field_validator("logprobs", mode="before")
    @classmethod
    def _none_of_chat(cls, value: Any) -> Any:
        # What means none in chat means none here.
        return None if value is False else value

    @field_validator("top_logprobs", mode="before")
    @classmethod
    def _not_of_chat(cls, value: Any) -> None:
        if value is not None and not (type(value) is int and value == 0):
            raise PydanticCustomError("not_served", "Plain completions take the number of alternatives in `logprobs`")

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) == 1 and isinstance(value[0], str):
                return value[0]
            if value and not all(isinstance(v, str) for v in value):
                raise PydanticCustomError("prompt_type", "Prompts of token ids are not served; send a string")
            raise PydanticCustomError("prompt_count", "Input should be a string or a list with exactly one string")
        return value


class EmbeddingsRequest(ServedRequest):
    model: Annotated[str, Field(min_length=1, max_length=1024)]
    input: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    ttl: Annotated[int, Field(ge=1, le=_INT32)] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value and not all(isinstance(v, str) for v in value):
            raise PydanticCustomError("input_type", "Inputs of token ids are not served; send strings")
        return value


class TokenizeRequest(Schema):
    model: Annotated[str, Field(min_length=1, max_length=1024)]
    text: Annotated[str, Field(max_length=MAX_TEXT)]
    add_special: bool | None = None


class DetokenizeRequest(Schema):
    model: Annotated[str, Field(min_length=1, max_length=1024)]
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=_INT32)]], Field(max_length=MAX_TEXT, fail_fast=True)]


class Lora(Schema):
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    scale: float = 1.0


class LoadRequest(ServedRequest):
    """A model and how to load it. The first fields are LM Studio's, those after `ttl` Paceline's own."""

    model: Annotated[str, Field(min_length=1, max_length=1024)]
    context_length: Annotated[int, Field(ge=1, le=_INT32)] | None = None
    eval_batch_size: Annotated[int, Field(ge=1, le=16384)] | None = None
    flash_attention: bool | None = None
    offload_kv_cache_to_gpu: bool | None = None
    echo_load_config: bool | None = None
    ttl: Annotated[int, Field(ge=1, le=_INT32)] | None = None
    parallel: Annotated[int, Field(ge=1, le=64)] | None = None
    queue: Annotated[int, Field(ge=0, le=_INT32)] | None = None
    prompt_cache_bytes: Annotated[int, Field(ge=0, le=2**53)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    cache_type_k: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    cache_type_v: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    gpu_layers: Annotated[int, Field(ge=-1, le=_INT32)] | None = None
    main_gpu: Annotated[int, Field(ge=0, le=1024)] | None = None
    tensor_split: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1, max_length=1024)] | None = None
    mmap: bool | None = None
    mlock: bool | None = None
    lora: Annotated[list[Lora], Field(max_length=64)] | None = None
    force: bool | None = None

    def config(self) -> LoadConfig:
        """As the serving room takes it."""
        own = {f.name for f in fields(LoadConfig)} & set(LoadRequest.model_fields) - {"tensor_split", "lora"}
        return LoadConfig(
            **{name: getattr(self, name) for name in own},
            offload_kv_cache=self.offload_kv_cache_to_gpu,
            tensor_split=None if self.tensor_split is None else tuple(self.tensor_split),
            lora=None if self.lora is None else tuple(LoraAdapter(Path(a.path), a.scale) for a in self.lora),
        )


class UnloadRequest(Schema):
    instance_id: Annotated[str, Field(min_length=1, max_length=1024)]


def refuse_unserved(data: Mapping[str, Any]) -> None:
    """A 400 for the first field whose value would change the answer and that is not served."""
    for name, harmless in _UNSERVED.items():
        value = data.get(name)
        if value is not None and not harmless(value):
            raise ApiError(
                400,
                f"{name}: this value is not served yet; leave the field out.",
                code="unsupported_parameter",
                param=name,
            )


def _part(part: Any, index: int) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text", None), str):
        return {"type": "text", "text": part["text"]}
    if kind in ("image_url", "input_image", "input_audio", "file"):
        raise PydanticCustomError("not_served", f"Part {index} is of type {kind}; only text is served yet")
    raise PydanticCustomError("content_type", f'Part {index} should be {{"type": "text", "text": "…"}}')


def _empty(value: Any) -> bool:
    return value in ("", [], {}) or value is False


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(v) and value == v for v in values)


# field -> the values that mean nothing. Null means nothing everywhere.
_UNSERVED: Mapping[str, Callable[[Any], bool]] = {
    "n": _one_of(1),
    "best_of": _one_of(1),
    "echo": _one_of(False),
    "suffix": _one_of(""),
    "tools": _one_of([]),
    "tool_choice": _one_of("none", "auto"),
    "functions": _one_of([]),
    "function_call": _one_of("none", "auto"),
    "modalities": _one_of(["text"]),
    "audio": _empty,
    "web_search_options": _empty,
    "preset": _one_of(""),
    "json_schema": _empty,
    "chat_template_kwargs": _one_of({}),
    "ignore_eos": _one_of(False),
    "mirostat": _one_of(0),
    "num_experts": _empty,
    "dimensions": _empty,
}
