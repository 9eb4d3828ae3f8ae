"""How a model is loaded, and what memory that takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter's file, and how much of it is added to the weights."""

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
        return LoadConfig(**{**defaults.given(), **self.given()})  # type: ignore[arg-type]

    def without(self, names: set[str]) -> LoadConfig:
        """This configuration with these fields left to the engine."""
        return LoadConfig(**{k: v for k, v in self.given().items() if k not in names})  # type: ignore[arg-type]

    def options(self) -> dict[str, object]:
        """The `options` of the worker protocol's `load`."""
        options = {k: v for k, v in self.given().items() if k not in ("context_length", "threads")}
        if self.tensor_split is not None:
            options["tensor_split"] = list(self.tensor_split)
        if self.lora is not None:
            options["lora"] = [{"path": str(adapter.path), "scale": adapter.scale} for adapter in self.lora]
        return options

    def draft_options(self) -> dict[str, object]:
        """What of it a draft beside the model shares: how weights are read and how attention is computed."""
        shared = ("flash_attention", "offload_kv_cache", "main_gpu", "mmap", "mlock")
        return {name: value for name, value in self.options().items() if name in shared}
