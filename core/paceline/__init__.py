"""Paceline: installs local language-model engines, pairs draft with main models, serves them through one API.

These are the names a plugin may use. Everything else is the host's own.
"""

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
