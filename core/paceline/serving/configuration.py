"""What of a load configuration a model and its engine can have, and how the worker is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from paceline.errors import NotFoundError, RequestError
from paceline.types import ModelKind

if TYPE_CHECKING:
    from paceline.loading import LoadConfig
    from paceline.serving.client import WorkerInfo
    from paceline.store import Store
    from paceline.types import Model, Runtime

_GENERATING = frozenset({"parallel", "prompt_cache_bytes", "eval_batch_size", "cache_type_k", "cache_type_v"})
"""Options that say something about generating alone."""


def selected_runtime(store: Store, model: Model) -> Runtime:
    """The runtime that serves `model`; NotFoundError with the way out when none is selected."""
    runtime = store.selected(model.format, model.id)
    if runtime is None:
        raise NotFoundError(
            f"no runtime is selected for {model.format} models, so {model.id} cannot be loaded",
            help="`paceline runtime get` installs the best one for this machine",
        )
    return runtime


def check_config(model: Model, config: LoadConfig) -> None:
    """Refuse what no engine could do for this model."""
    longest = model.facts.max_context_length
    if config.context_length is not None and longest is not None and config.context_length > longest:
        raise RequestError(
            f"{model.id} was made for at most {longest} tokens of context, not {config.context_length}",
            param="context_length",
        )
    for adapter in config.lora or ():
        if not adapter.path.is_absolute() or not adapter.path.exists():
            raise RequestError(f"{str(adapter.path)!r} is not the full path of an adapter", param="lora")


def check_options(info: WorkerInfo, model: Model, config: LoadConfig) -> None:
    """Refuse what this engine cannot do."""
    for name in config.options():
        if name not in info.load_options:
            raise RequestError(
                f"the engine {info.engine} {info.version} has no load option {name}",
                help=f"leave it out; it has {', '.join(n for n in info.load_options if n != 'embedding') or 'none'}",
                param=name,
            )
        if name in _GENERATING and model.facts.kind is ModelKind.EMBEDDINGS:
            raise RequestError(f"{model.id} makes embeddings: {name} has no use", param=name)
    wanted = "folder" if "lora_folder" in info.features else "file"
    for adapter in config.lora or ():
        given = "folder" if adapter.path.is_dir() else "file"
        if given != wanted:
            raise RequestError(
                f"{str(adapter.path)!r} is a {given}; for {info.engine} an adapter is a {wanted}", param="lora"
            )


def fitting(defaults: LoadConfig, info: WorkerInfo, model: Model) -> LoadConfig:
    """What of the defaults this model and its engine can have."""
    unfit = set(defaults.options()) - set(info.load_options)
    if model.facts.kind is ModelKind.EMBEDDINGS:
        unfit |= _GENERATING
    longest = model.facts.max_context_length
    if defaults.context_length is not None and longest is not None:
        defaults = replace(defaults, context_length=min(defaults.context_length, longest))
    return defaults.without(unfit)


def load_params(role: str, model: Model, config: LoadConfig, options: Mapping[str, object]) -> dict[str, object]:
    params: dict[str, object] = {"role": role, "path": str(model.path), "threads": config.threads or _threads()}
    if role == "main" and config.context_length is not None:
        params["context_length"] = config.context_length
    return {**params, "options": options} if options else params


def _threads() -> int:
    """Threads a worker computes with: the physical cores this process may use."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError):
        return max(1, min(usable, psutil.cpu_count(logical=False) or usable))
    return usable
