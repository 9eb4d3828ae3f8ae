"""The bundles that a server keeps, to be installed there or fetched from there: files in <home>/bundles, by name.

What is being written has a name that begins with a dot and ends with the number of the process that writes it.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil

from paceline.errors import ArchiveError, InstallError, NotFoundError, UsageError
from paceline.manager import bundling
from paceline.manager.bundles import read_bundle
from paceline.store import transaction
from paceline.store.digests import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from paceline.manager.bundles import Bundle

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def place(home: Path, name: str) -> Path:
    """Where the bundle `name` is, or would be. Raises UsageError for what is no name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a bundle",
            help="use up to 100 letters, digits, dots, dashes and underscores",
            param="name",
        )
    return home / "bundles" / name


def find(home: Path, name: str) -> Path:
    """The bundle of that name. Raises NotFoundError, and UsageError for what is no name."""
    path = place(home, name)
    if not path.is_file():
        there = ", ".join(kept["name"] for kept in listed(home)) or "none"
        raise NotFoundError(f"no bundle is called {name!r} (there: {there})")
    return path


def listed(home: Path) -> list[dict[str, Any]]:
    """The bundles that are kept, as JSON shows them; none of them is read."""
    kept = []
    for path in sorted((home / "bundles").glob("[A-Za-z0-9]*")):
        with suppress(FileNotFoundError):  # removed meanwhile
            status = path.stat()
            since = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")
            kept.append({"name": path.name, "size_bytes": status.st_size, "since": since})
    return kept


def describe(bundle: Bundle, *, judged: bool = False) -> dict[str, Any]:
    """One of them as JSON shows it, with its sha256; `judged`: and whether this machine can run what it holds."""
    verdicts = bundling.judged(bundle) if judged else None
    return {
        "name": bundle.path.name,
        "size_bytes": bundle.path.stat().st_size,
        "sha256": sha256_of(bundle.path),
        **bundling.describe(bundle, verdicts),
    }


def remove(home: Path, name: str) -> None:
    """Delete a bundle; what was installed from it stays. Raises NotFoundError."""
    path = find(home, name)
    with transaction.explained(f"removing the bundle {name}", home):
        transaction.delete(path)


@contextmanager
def arriving(home: Path, name: str, size: int | None) -> Iterator[Path]:
    """A path to write a bundle of `size` bytes to, which `keep` makes count; it is deleted when the block is left.

    Raises InstallError with the numbers when the disk has no room for it, and StoreError.
    """
    path = place(home, name)
    with transaction.explained(f"receiving the bundle {name}", home):
        folder = transaction.make_folder(path.parent)
        _sweep(folder)
        if size is not None and size > (free := shutil.disk_usage(folder).free):
            raise InstallError(
                f"the bundle has {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free in {folder}",
                help="`paceline runtime prune --cache` frees space; or set PACELINE_HOME to a folder on another disk",
            )
        draft = folder / f".{name}.{secrets.token_hex(4)}.{os.getpid()}"
        transaction.step("write", draft)
        try:
            yield draft
        finally:
            transaction.discard(draft)


def keep(draft: Path, home: Path, name: str, sha256: str | None = None) -> Bundle:
    """Check what has arrived, whole and every hash, and keep it under its name, instead of one that had it.

    `sha256`: what it should have. Raises ArchiveError when it is no bundle, is damaged, or another one.
    """
    path = place(home, name)
    try:
        if sha256 is not None and (got := sha256_of(draft)) != sha256:
            raise ArchiveError(f"{draft} cannot be used: its sha256 is {got}, not {sha256}", help="send it again")
        read_bundle(draft).check()
    except ArchiveError as error:
        raise ArchiveError(error.message.replace(str(draft), name), help=error.help) from None
    transaction.settle(draft, path)
    return read_bundle(path)


def _sweep(folder: Path) -> None:
    """Delete what processes that have ended were writing."""
    for draft in folder.glob(".*"):
        writer = draft.name.rpartition(".")[2]
        if not (writer.isdigit() and psutil.pid_exists(int(writer))):
            transaction.discard(draft)
