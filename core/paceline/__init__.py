"""Paceline: installs local language-model engines, pairs draft with main models, serves them through one API.

These are the names a plugin may use. Everything else is the host's own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.engine import Engine, ModelFormat, python_worker
    from paceline.errors import ModelFileError, PacelineError
    from paceline.hookspecs import API_VERSION, hookimpl
    from paceline.loading import LoadConfig, LoraAdapter, MemoryEstimate
    from paceline.paths import worker_root
    from paceline.types import (
        Compatibility,
        GpuRequirement,
        Model,
        ModelFacts,
        ModelKind,
        Package,
        PairStatus,
        PairVerdict,
        Recipe,
        Release,
        Requirements,
        Runtime,
        Upstream,
        Verdict,
        WorkerSpec,
    )

__all__ = [
    "API_VERSION",
    "Compatibility",
    "Engine",
    "GpuRequirement",
    "LoadConfig",
    "LoraAdapter",
    "MemoryEstimate",
    "Model",
    "ModelFacts",
    "ModelFileError",
    "ModelFormat",
    "ModelKind",
    "PacelineError",
    "Package",
    "PairStatus",
    "PairVerdict",
    "Recipe",
    "Release",
    "Requirements",
    "Runtime",
    "Upstream",
    "Verdict",
    "WorkerSpec",
    "hookimpl",
    "python_worker",
    "worker_root",
]

__version__ = "0.1.0"

# Where the names are that are not in `types`. Each is imported when it is first asked for: most commands need few.
_MODULES = {
    "API_VERSION": "hookspecs",
    "Engine": "engine",
    "LoadConfig": "loading",
    "LoraAdapter": "loading",
    "MemoryEstimate": "loading",
    "ModelFileError": "errors",
    "ModelFormat": "engine",
    "PacelineError": "errors",
    "hookimpl": "hookspecs",
    "python_worker": "engine",
    "worker_root": "paths",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"paceline.{_MODULES.get(name, 'types')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
