"""What this machine's processor can execute, read from Linux's /proc/cpuinfo and nothing else."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

CPUINFO = Path("/proc/cpuinfo")

# What a compiler that builds for the processor it runs on may use by itself. AMX is used only by name, and the
# recipes here leave it out.
_COMPILED = re.compile(
    r"pni|ssse3|sse4\w*|avx\w*|fma4?|f16c|bmi[12]|abm|movbe|popcnt|adx|aes|vaes|pclmulqdq|vpclmulqdq|gfni|sha_ni"
    r"|asimd\w*|fphp|i8mm|bf16|sve\w*|sme\w*|atomics|lrcpc|fcma|sha\d+|crc32|pmull"
)


def cpuinfo_values(text: str, key: str) -> list[str]:
    """The value of `key` for every processor in the text of /proc/cpuinfo."""
    pairs = (line.partition(":") for line in text.splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == key and value.strip()]


def features_in_cpuinfo(text: str) -> frozenset[str]:
    """The extensions that all processors in the text of /proc/cpuinfo share (cores may differ on Arm)."""
    lists = cpuinfo_values(text, "flags") or cpuinfo_values(text, "Features")
    return frozenset.intersection(*(frozenset(features.split()) for features in lists)) if lists else frozenset()


@cache
def features() -> frozenset[str] | None:
    """The extensions that every core has; None where there is no /proc/cpuinfo, or none in it."""
    try:
        return features_in_cpuinfo(CPUINFO.read_text("utf-8", "replace")) or None
    except OSError:
        return None


def instruction_sets(features: Iterable[str]) -> tuple[str, ...]:
    """Those of `features` that a build for this very processor may depend on, sorted."""
    return tuple(sorted(f for f in features if _COMPILED.fullmatch(f)))
