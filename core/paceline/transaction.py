"""File-system steps that a crash cannot leave half done.

A change becomes visible by one rename; everything before it happens in a staging folder on the same file system,
which may be deleted whenever nobody installs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator


def write_json(path: Path, value: object) -> None:
    """Replace `path` with `value` as JSON: after a crash the file holds the old or the new text, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def publish(staged: Path, final: Path) -> None:
    """Make a finished folder visible under its final name by one rename. Whatever had that name is moved away first."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        discard(final, staged.parent)
    staged.rename(final)
    sync_folder(final.parent)


def discard(folder: Path, staging: Path) -> None:
    """Make a folder disappear by one rename into `staging`, then delete it there."""
    staging.mkdir(parents=True, exist_ok=True)
    grave = Path(tempfile.mkdtemp(prefix="removed.", dir=staging))
    folder.rename(grave / folder.name)
    sync_folder(folder.parent)
    shutil.rmtree(grave, ignore_errors=True)


def sweep(staging: Path) -> None:
    """Delete what ended processes left in `staging`. Only the holder of the install lock may call it."""
    with suppress(FileNotFoundError):
        for leftover in list(staging.iterdir()):
            shutil.rmtree(leftover, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can say so."""
    if sys.platform == "win32":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(doing: str, folder: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what could not be done, where and why."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise StoreError(
            f"{doing} failed at {where}: {error.strerror or error}",
            help=f"make {folder} writable and see that its disk has room, or set PACELINE_HOME to another folder",
        ) from error
