"""The download cache: how much room its parts take, and what of them nothing refers to.

uv links the files of its cache into runtimes, and Paceline does so with byte code. What is linked takes no room of its
own, and deleting it would free none. A file with several names in the cache (`equal_files`) takes its room once.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paceline import child
from paceline.errors import BuildError
from paceline.packages import builds, byte_code
from paceline.packages.depot import BUNDLES, Depot
from paceline.packages.uv import uv_command, uv_environment
from paceline.progress import silent

if TYPE_CHECKING:
    from pathlib import Path

    from paceline.progress import Progress

UV = "uv's packages"
_FOLDERS = {
    "fetched packages": ("packages/files", "packages/seen", f"{BUNDLES}/packages/files"),
    "broken-off builds": ("builds",),
    "byte code": (byte_code.FOLDER,),
    "index answers": ("resolution",),
    UV: ("uv",),
}


@dataclass(frozen=True)
class Part:
    """What is kept of one kind, in bytes of its files."""

    name: str
    size_bytes: int
    shared_bytes: int
    """Of that, what runtimes have links to."""
    freed_bytes: int | None
    """What clearing freed, or would; None where only uv, which does it, will know."""

    @property
    def own_bytes(self) -> int:
        """What deleting all of it would free."""
        return self.size_bytes - self.shared_bytes


def look(cache: Path) -> tuple[Part, ...]:
    """What is there, and what `clear` would free. Changes nothing."""
    sizes = {name: _measure(cache, name) for name in _FOLDERS}
    return tuple(
        Part(name, size, shared, None if name == UV and size else size - shared)
        for name, (size, shared) in sizes.items()
    )


def clear(cache: Path, progress: Progress = silent) -> tuple[Part, ...]:
    """Delete what nothing refers to, uv's part with uv; returns what is left and what was freed.

    Waits for those who use it: an installation, a build, a bundle that is made, uv itself. Raises BuildError when uv
    cannot.
    """
    before = {part.name: part for part in look(cache)}
    depot = Depot(cache)
    depot.clear(progress)
    Depot(cache / BUNDLES).clear(progress)
    builds.clear(cache, progress)
    byte_code.clear(cache)
    if (cache / "resolution").is_dir():
        _clean(cache, "clean", cache / "resolution")
    if (cache / "uv").is_dir():
        _clean(cache, "prune", cache / "uv")
    depot.forget_lost(cache / "uv", progress)
    return tuple(
        replace(part, freed_bytes=max(0, before[part.name].own_bytes - part.own_bytes)) for part in look(cache)
    )


def _clean(cache: Path, how: str, folder: Path) -> None:
    """Let uv `clean` (delete) or `prune` its cache `folder`, which no other uv uses meanwhile."""
    lines: list[str] = []
    environment = uv_environment(os.environ)
    argv: list[str | Path] = ["cache", how, "--cache-dir", folder]
    if child.run(uv_command(argv, environment), env=environment, cwd=cache, on_line=lines.append):
        raise BuildError(f"uv could not clean its cache {folder}:\n{''.join(lines)}")


def _measure(cache: Path, name: str) -> tuple[int, int]:
    """Bytes of all files of a part, and of those with a link elsewhere, as far as they stay there meanwhile."""
    links: dict[tuple[int, int], tuple[int, int]] = {}
    for folder in _FOLDERS[name]:
        for where, _, files in os.walk(cache / folder):
            for file in files:
                with suppress(OSError):
                    status = os.lstat(f"{where}/{file}")
                    which = status.st_dev, status.st_ino
                    _, others = links.get(which, (0, status.st_nlink))
                    links[which] = status.st_size, others - 1
    return sum(size for size, _ in links.values()), sum(size for size, others in links.values() if others > 0)
