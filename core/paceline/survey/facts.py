"""What a survey says: facts about this machine, each with where it was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

T = TypeVar("T")


@dataclass(frozen=True)
class Fact(Generic[T]):
    """One fact and its source; `value` is None when it could not be found, and `source` then says what was tried."""

    value: T | None
    source: str


@dataclass(frozen=True)
class Libc:
    """The C library programs are linked with."""

    family: str
    """`glibc` or `musl`."""
    version: str | None
    """As the library states it; nothing promises that it can be parsed."""

    def __str__(self) -> str:
        return f"{self.family} {self.version}" if self.version else self.family


@dataclass(frozen=True)
class Gpu:
    """One GPU. The driver is a fact of the machine (`Survey.nvidia_driver`), not of each card."""

    make: str
    """`nvidia`, `apple`, `amd` or `intel`."""
    name: str
    memory_bytes: int | None = None
    compute_capability: str | None = None
    """NVIDIA only: `8.9`."""
    unified: bool = False
    """True: the GPU has no memory of its own and `memory_bytes` is the machine's."""


@dataclass(frozen=True)
class Survey:
    """The facts about this machine that decide what it can run."""

    os: Fact[str]
    """`linux`, `macos` or `windows`."""
    os_version: Fact[str]
    """macOS: the product version; Windows: major.minor.build; Linux: the kernel release."""
    arch: Fact[str]
    """`x86_64` or `arm64` (else as the system names it): what programs of this Python run as."""
    libc: Fact[Libc]
    """Linux only."""
    cpu_name: Fact[str]
    cpu_features: Fact[frozenset[str]]
    """Names as in /proc/cpuinfo, on every system."""
    physical_cores: Fact[int]
    memory_total: Fact[int]
    """Bytes this process may use: the machine's memory, or the limit of its control group."""
    memory_available: Fact[int]
    """Bytes that could be allocated now without swapping."""
    gpus: Fact[tuple[Gpu, ...]]
    """An empty tuple says that there is none; None that nobody could tell."""
    nvidia_driver: Fact[str]
    cuda_version: Fact[str]
    """The newest CUDA version that the NVIDIA driver supports, `12.4`; not that of a toolkit."""
    python_version: Fact[str]
    """The interpreter that runs Paceline and that runtimes are built on."""
    tools: Fact[Mapping[str, Path | None]]
    """Build tools by name; None for one that was looked for and is not here."""
    tool_versions: Fact[Mapping[str, str]]
    """Of the tools that are here, the versions of those whose version decides: `{"nvcc": "12.4"}`."""
