"""The Python and the machine that wheels are chosen for: those here, or others that a release is for."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.tags import compatible_tags, cpython_tags, mac_platforms, platform_tags, sys_tags
from packaging.version import Version

if TYPE_CHECKING:
    from packaging.tags import Tag

    from paceline.types import Requirements

OLDEST_GLIBC = "2.28"
OLDEST_MACOS = "14.0"
"""Of releases that name none."""

_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""By minor version of glibc: https://packaging.python.org/en/latest/specifications/platform-compatibility-tags/"""


@dataclass(frozen=True)
class Target:
    """What a wheel has to fit."""

    name: str
    """In sentences: `Python 3.12 on windows x86_64`."""
    python: str
    """The whole version: `3.12.4`."""
    tags: tuple[Tag, ...]
    """Of the wheels that fit, best first."""


def here() -> Target:
    """The Python that runtimes are built on here, and this machine."""
    return Target("this Python and machine", platform.python_version(), tuple(sys_tags()))


def oldest(requires: Requirements, python: str) -> Target:
    """Python `python` (`3.12`) on the oldest machine that `requires` admits: what fits that fits every newer one."""
    version, platforms = (3, int(python.partition(".")[2])), _platforms(requires)
    interpreter = f"cp{version[0]}{version[1]}"
    own = cpython_tags(version, abis=[interpreter], platforms=platforms)
    name = " ".join(filter(None, (f"Python {python} on", requires.os or "this machine", requires.arch)))
    return Target(name, f"{python}.0", (*own, *compatible_tags(version, interpreter, platforms)))


def _platforms(requires: Requirements) -> list[str]:
    arch = requires.arch or "x86_64"
    match requires.os:
        case "linux":
            arch = "aarch64" if arch == "arm64" else arch
            newest = Version(requires.min_glibc or OLDEST_GLIBC).minor
            names = [name for n in range(newest, 4, -1) for name in (f"manylinux_2_{n}", _LEGACY.get(n)) if name]
            return [f"{name}_{arch}" for name in (*names, "linux")]
        case "macos":
            version = Version(requires.min_os_version or OLDEST_MACOS)
            return list(mac_platforms((version.major, version.minor), arch))
        case "windows":
            return ["win_arm64" if arch == "arm64" else "win_amd64"]
        case _:
            return list(platform_tags())
