"""How a model is loaded, and what memory that takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

API_NAMES = {"offload_kv_cache": "offload_kv_cache_to_gpu"}
"""Fields of a load configuration that LM Studio's API calls otherwise."""

_ALTERNATIVES = {"main_gpu": "tensor_split", "tensor_split": "main_gpu"}
"""Fields of which a load has one at most."""


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter's file or folder, and how much of it is added to the weights."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True)
class LoadConfig:
    """How a model is loaded. None leaves a field to the engine.

    The names are those of the worker protocol's `load`; docs/worker-protocol.md says what each means.
    """

    context_length: int | None = None
    """Tokens of one request's context."""
    parallel: int | None = None
    """Requests that run at the same time, each with a context of its own."""
    queue: int | None = None
    """Requests that may wait while those run; one more is refused."""
    prompt_cache_bytes: int | None = None
    """Memory for the states of conversations that others drove from their place; 0 keeps none."""
    threads: int | None = None
    eval_batch_size: int | None = None
    flash_attention: bool | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    offload_kv_cache: bool | None = None
    gpu_layers: int | None = None
    """-1: all."""
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] | None = None
    mmap: bool | None = None
    mlock: bool | None = None
    lora: tuple[LoraAdapter, ...] | None = None

    def given(self) -> dict[str, object]:
        """The fields that are not left to the engine."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def over(self, defaults: LoadConfig) -> LoadConfig:
        """This configuration, with what it leaves open taken from `defaults`."""
        given = self.given()
        left_open = defaults.without({_ALTERNATIVES[name] for name in given if name in _ALTERNATIVES})
        return LoadConfig(**{**left_open.given(), **given})  # type: ignore[arg-type]

    def without(self, names: set[str]) -> LoadConfig:
        """This configuration with these fields left to the engine."""
        return LoadConfig(**{k: v for k, v in self.given().items() if k not in names})  # type: ignore[arg-type]

    def options(self) -> dict[str, object]:
        """The `options` of the worker protocol's `load`."""
        options = {k: v for k, v in self.given().items() if k not in ("context_length", "threads")}
        if self.tensor_split is not None:
            options["tensor_split"] = list(self.tensor_split)
        if self.lora is not None:
            options["lora"] = _plain(self.lora)
        return options

    def plain(self) -> dict[str, object]:
        """The fields that are not left to the engine, as JSON under the names of the API's load."""
        values = {**self.given(), **self.options()}
        return {API_NAMES.get(name, name): value for name, value in values.items()}

    def for_draft(self) -> LoadConfig:
        """What of it a draft beside the model shares: its caches have their own types, and it lies on one GPU whole."""
        divided = {"gpu_layers", "tensor_split", "offload_kv_cache"}
        return self.without(
            {"queue", "prompt_cache_bytes", "eval_batch_size", "cache_type_k", "cache_type_v", "lora"} | divided
        )

    def draft_options(self) -> dict[str, object]:
        """The `options` of the draft's `load`; it has as many requests as the main model anyway."""
        return self.for_draft().without({"parallel"}).options()


@dataclass(frozen=True)
class MemoryEstimate:
    """What a loaded model takes, in bytes, told from its metadata. None: nobody can tell."""

    weights: int
    cache: int | None
    """Keys and values of all requests' contexts, or other state."""
    compute: int | None
    """Buffers it computes in."""
    on_gpu: int = 0
    """How much of all that lies in the memory of GPUs."""
    context_length: int | None = None
    parallel: int | None = None
    """The context and the number of requests it is the estimate of."""
    reading: int = 0
    """What comes on top while the longest prompt is read."""
    gpus: tuple[int, ...] = ()
    """Of `on_gpu`, what must lie on each GPU, in the engine's order; empty: the engine divides it as they have room."""

    @property
    def total(self) -> int:
        """The sum of what is known: at least so much is needed."""
        return self.weights + (self.cache or 0) + (self.compute or 0) + self.reading

    @property
    def on_host(self) -> int:
        return self.total - self.on_gpu


def _plain(adapters: tuple[LoraAdapter, ...]) -> list[dict[str, object]]:
    return [{"path": str(adapter.path), "scale": adapter.scale} for adapter in adapters]
