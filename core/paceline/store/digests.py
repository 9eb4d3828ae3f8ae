"""What the files below a folder are, and their sha256, each file read once as long as it stays what it was."""

from __future__ import annotations

import hashlib
import os
from stat import S_ISLNK, S_ISREG
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_CHUNK = 64
"""Files that a thread takes at a time: most are small, and handing one over costs as much as hashing it."""
_BLOCK = 1 << 20


def files_below(folder: str | os.PathLike[str]) -> dict[str, os.stat_result]:
    """Every regular file and every link below `folder`, by its path from there, with `/` and in order."""
    root = os.fspath(folder)
    found: dict[str, os.stat_result] = {}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(f"{root}/{below}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{below}{entry.name}/")
                # On Windows an entry knows neither the device nor the number of its file.
                elif S_ISREG((status := os.lstat(entry.path)).st_mode) or S_ISLNK(status.st_mode):
                    found[below + entry.name] = status
    return dict(sorted(found.items()))


def sha256_of(file: str | os.PathLike[str]) -> str:
    """Of one file, in hexadecimal. Raises OSError."""
    return _hash(os.fspath(file))


class Digests:
    """Remembers sha256 by a file's device, number, size and time of change, as git's index does.

    So a file that was hashed is not read again under another name, and one that was written since is.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], str] = {}

    def of(self, files: Mapping[str, os.stat_result]) -> dict[str, str]:
        """The sha256, in hexadecimal, of regular files that are given by path with their status. Raises OSError."""
        from concurrent.futures import ThreadPoolExecutor

        keys = {path: _key(status) for path, status in files.items()}
        unread = list({key: path for path, key in keys.items() if key not in self._known}.values())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            chunks = [unread[n : n + _CHUNK] for n in range(0, len(unread), _CHUNK)]
            for chunk, hashed in zip(chunks, pool.map(_hash_all, chunks), strict=True):
                self._known.update(zip((keys[path] for path in chunk), hashed, strict=True))
        return {path: self._known[key] for path, key in keys.items()}

    def take_over(self, known: os.stat_result, equal: os.stat_result) -> None:
        """Know a file as well that was found to have the same bytes as one that may be known."""
        if (sha256 := self._known.get(_key(known))) is not None:
            self._known[_key(equal)] = sha256


def _key(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _hash_all(paths: Iterable[str]) -> list[str]:
    return [_hash(path) for path in paths]


def _hash(path: str) -> str:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - thousands of small files, and Path costs as much as they
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
        return digest.hexdigest()
