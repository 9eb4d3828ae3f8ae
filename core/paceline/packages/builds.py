"""Where wheels are built of folders of this machine: `builds` in the cache, empty but for the build under way."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.packages.held import LOCK, held
from paceline.store import transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paceline.progress import Progress


@contextmanager
def build_folder(cache: Path, progress: Progress) -> Iterator[Path]:
    """An empty folder until the block ends. What builds left that broke off is deleted before."""
    with held(cache / "builds", progress, _WAITING):
        _clear(cache / "builds")
        with tempfile.TemporaryDirectory(dir=cache / "builds", ignore_cleanup_errors=True) as name:
            yield Path(name)


def clear(cache: Path, progress: Progress) -> None:
    """Delete what builds left that broke off. Waits for a build that is under way."""
    folder = cache / "builds"
    if folder.is_dir():
        with held(folder, progress, _WAITING):
            _clear(folder)


_WAITING = "another process builds a wheel in the same cache, waiting for it"


def _clear(folder: Path) -> None:
    for left in folder.iterdir():
        if left.name != LOCK:
            transaction.discard(left)
