"""A survey for people: one row per fact."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.survey.facts import Gpu, Survey

_NOT_FOUND = "not found"
_NAMES = {
    "os": "operating system",
    "os_version": "version",
    "arch": "architecture",
    "libc": "C library",
    "cpu_name": "processor",
    "cpu_features": "CPU features",
    "physical_cores": "physical cores",
    "memory_total": "memory",
    "memory_available": "memory available",
    "gpus": "GPUs",
    "nvidia_driver": "NVIDIA driver",
    "cuda_version": "CUDA of the driver",
    "python_version": "Python",
    "tools": "build tools",
    "tool_versions": "versions of them",
}
# Of a hundred flags, those that local engines are built for.
_TELLING = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "asimd", "asimddp", "i8mm", "bf16", "sve", "sme"),
)


def describe(survey: Survey) -> list[tuple[str, str, str]]:
    """(fact, value, source) in the order of `Survey`; values are short, the full ones are in the survey itself.

    Why a fact could not be found is told once, and is `as above` where an earlier row has told it.
    """
    rows: list[tuple[str, str, str]] = []
    for field in dataclasses.fields(survey):
        fact = getattr(survey, field.name)
        told = fact.value is None and any(fact.source in source for _, _, source in rows)
        rows.append((_NAMES[field.name], _say(field.name, fact.value), "as above" if told else fact.source))
    return rows


def _say(name: str, value: Any) -> str:
    if value is None:
        return _NOT_FOUND
    if name == "cpu_features":
        telling = [feature for feature in _TELLING if feature in value]
        return ", ".join(telling) + f" ({len(value)} in all)" if telling else f"{len(value)} in all"
    if name in ("memory_total", "memory_available"):
        return _gibibytes(value)
    if name == "gpus":
        return "; ".join(_gpu(gpu) for gpu in value) or "none"
    if name == "tool_versions":
        return ", ".join(f"{tool} {version}" for tool, version in value.items()) or "none needed"
    if isinstance(value, Mapping):
        return ", ".join(tool for tool, path in value.items() if path is not None) or "none"
    return str(value)


def _gpu(gpu: Gpu) -> str:
    told = []
    if gpu.memory_bytes is not None:
        told.append(_gibibytes(gpu.memory_bytes) + (" shared with the processor" if gpu.unified else ""))
    if gpu.compute_capability is not None:
        told.append(f"compute capability {gpu.compute_capability}")
    return f"{gpu.name} ({', '.join(told)})" if told else gpu.name


def _gibibytes(size: int) -> str:
    """Memory is sold and shown in powers of two."""
    return f"{size / (1 << 30):.1f} GiB"
