"""Whether the disk has room for an installation, asked before anything starts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.errors import InstallError
from paceline.packages.locked import download_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from paceline.store import Store
    from paceline.types import Release

MARGIN_BYTES = 32 * 1000 * 1000
"""On top of the runtime's own size: the log, the hashes of its files, and room to go on working."""


@dataclass(frozen=True)
class Space:
    """What one folder's file system needs and has."""

    folder: Path
    needed_bytes: int
    free_bytes: int


def space_for(release: Release, store: Store, cache: Path) -> tuple[Space, ...]:
    """What installing `release` needs where, were nothing of it here; empty where nobody knows its size.

    The size is the recipe's, or that of an installed runtime of the same name. A cache on the home's file system shares
    its bytes with the runtime (uv links the files); on another it needs as much again. What is fetched lies in the
    cache until it is unpacked. What a build needs while it runs is not in it.
    """
    size = release.recipe.installed_bytes or store.size_of_newest(release.name)
    fetched = download_bytes(release.recipe)
    if size is None and not fetched:
        return ()
    needed = (size or 0) + MARGIN_BYTES
    where = _existing(cache).stat().st_dev
    folders = {_existing(folder).stat().st_dev: folder for folder in (cache, store.home)}
    return tuple(
        Space(folder, needed + (fetched or 0) * (device == where), shutil.disk_usage(_existing(folder)).free)
        for device, folder in folders.items()
    )


def check_space(release: Release, store: Store, cache: Path) -> None:
    """Raise InstallError with the numbers when a disk is too full for `release`."""
    try:
        spaces = space_for(release, store, cache)
    except OSError:  # a file system that does not say decides nothing
        return
    for space in spaces:
        if space.free_bytes < space.needed_bytes:
            raise InstallError(
                f"installing {release.id} needs {_mb(space.needed_bytes)} in {space.folder}, "
                f"where {_mb(space.free_bytes)} are free",
                help="`paceline runtime prune --cache` frees space; or set PACELINE_HOME and PACELINE_CACHE to folders "
                "on another disk",
            )


def _existing(folder: Path) -> Path:
    return next(f for f in (folder, *folder.parents) if f.exists())


def _mb(n: int) -> str:
    return f"{n / 1e6:.0f} MB"
