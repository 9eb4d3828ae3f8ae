"""The GPU of an Apple-silicon Mac."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.survey.facts import Fact, Gpu

if TYPE_CHECKING:
    from collections.abc import Callable


def apple_gpu(
    arch: Fact[str], cpu_name: Callable[[], Fact[str]], memory_total: Callable[[], Fact[int]]
) -> Fact[tuple[Gpu, ...]]:
    """Every arm64 Mac has one, on the same chip and in the same memory; what an Intel Mac has is not looked for."""
    if arch.value != "arm64":
        return Fact(None, "the GPUs of Intel Macs are not looked for")
    name = cpu_name().value or "Apple GPU"
    gpu = Gpu("apple", name, memory_bytes=memory_total().value, unified=True)
    return Fact((gpu,), "every arm64 Mac has one")
