"""Zip archives from elsewhere, looked at before anything is unpacked.

uv unpacks wheels, and keeps what it writes below the folder it writes to: it leaves out files whose names lead outside,
writes links as the text of their target, and drops set-user-id bits. But it says nothing about such names, takes the
last of two files of one name, and unpacks without a bound. Whoever makes such an archive means no good: it is refused.
"""

from __future__ import annotations

import errno
import hashlib
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.errors import ArchiveError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to. Inflating is bounded by what the archive's directory declares."""

    files: int = 200_000
    unpacked_bytes: int = 32 * 2**30
    ratio: int = 200
    """Bytes unpacked for each byte of the archive, in what exceeds `always`; code and weights stay far below it."""
    always: int = 64 * 2**20


@dataclass(frozen=True)
class Contents:
    sha256: str
    """Of the archive itself."""
    names: tuple[str, ...]
    """Of its files, without folders, in the order of its directory."""
    unpacked_bytes: int


def check_zip(path: Path, limits: Limits = Limits()) -> Contents:
    """What the zip archive at `path` holds, when all of it may be unpacked.

    Its names, kinds, modes and declared sizes are checked first; then every file is read, so that sizes and checksums
    are true. Raises ArchiveError that names the first thing wrong, OSError for a file that cannot be read.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_sizes(path, entries, limits)
            for entry in entries:
                if problem := _wrong(entry):
                    raise _refused(path, f"its file {entry.filename!r} {problem}")
            names = tuple(entry.filename for entry in entries if not entry.is_dir())
            if problem := clashing(names):
                raise _refused(path, problem)
            for entry in entries:
                with archive.open(entry) as content:
                    while content.read(2**20):
                        pass
    except _DAMAGED as error:
        raise _refused(path, f"it is damaged: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _refused(path, "it is damaged: it says that one of its files begins before itself") from None
    return Contents(sha256, names, sum(entry.file_size for entry in entries))


def wrong_name(name: str) -> str | None:
    """Why a file of this name may not be unpacked; None when it stays below the folder on every system."""
    if _CONTROL.search(name):
        return "has control characters in its name"
    if name.startswith("/") or "\\" in name or _DRIVE.match(name):
        return "has an absolute path or a backslash in its name"
    if any(part in ("", ".", "..") for part in name.removesuffix("/").split("/")):
        return "has a name that leads elsewhere"
    return None


def clashing(names: Iterable[str]) -> str | None:
    """What is wrong with a list of files as a whole: one name twice, or a file where others need a folder."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return f"it has two files named {name!r}"
        seen.add(name)
    for name in seen:
        parts = name.split("/")
        for end in range(1, len(parts)):
            if (parent := "/".join(parts[:end])) in seen:
                return f"it has {parent!r} both as a file and as a folder"
    return None


_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What `zipfile` and what it calls raise; a name that is no text is a ValueError."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_KNOWN = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNIX = 3
"""`create_system` of an archive made on Unix: the upper half of `external_attr` is the file's mode."""
_ENCRYPTED = 0x1


def _check_sizes(path: Path, entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    held = path.stat().st_size
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > limits.files:
        raise _refused(path, f"it has {len(entries)} files, more than {limits.files}")
    if unpacked > limits.unpacked_bytes:
        raise _refused(path, f"it unpacks to {unpacked} bytes, more than {limits.unpacked_bytes}")
    if unpacked > limits.always + limits.ratio * held:
        raise _refused(path, f"its {held} bytes unpack to {unpacked}")
    if sum(entry.compress_size for entry in entries) > held:
        raise _refused(path, "its files lie over one another")


def _wrong(entry: zipfile.ZipInfo) -> str | None:
    if problem := wrong_name(entry.orig_filename):
        return problem
    if entry.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if entry.compress_type not in _KNOWN:
        return f"is compressed by a method ({entry.compress_type}) that wheels do not use"
    mode = entry.external_attr >> 16 if entry.create_system == _UNIX else 0
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
        return f"has a mode ({stat.S_IMODE(mode):04o}) that gives it somebody else's rights"
    return None


def _refused(path: Path, problem: str) -> ArchiveError:
    return ArchiveError(
        f"{path.name} is not unpacked: {problem}", help="get it again from where it was made, or make it anew"
    )
