"""Walk a folder of models without being stopped by what else lies in it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_DEPTH = 8
"""Folders below the one asked for; models lie two deep (`publisher/model/file`)."""


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) for `folder` and all below it, in a stable order.

    Links to folders are followed, each real folder is visited once, so a loop of links ends. Hidden folders,
    folders that cannot be read and what vanishes meanwhile are left out.
    """
    seen: set[tuple[int, int]] = set()
    pending = [(str(folder), 0)]
    while pending:
        path, depth = pending.pop()
        try:
            stat = os.stat(path)  # noqa: PTH116 - a Path per folder costs more than the call
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            folders, files = _list(path)
        except OSError:
            continue
        yield path, files
        if depth < MAX_DEPTH:
            pending.extend((f"{path}{os.sep}{name}", depth + 1) for name in reversed(folders))


def _list(path: str) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                (folders if entry.is_dir() else files).append(entry.name)
            except OSError:
                continue
    return sorted(folders), sorted(files)
