"""Source distributions, looked at before uv unpacks and builds them; wheels are looked at by `archives`."""

from __future__ import annotations

import gzip
import posixpath
import stat
import tarfile
import zlib
from itertools import dropwhile
from typing import TYPE_CHECKING, cast

from paceline.errors import ArchiveError
from paceline.packages.archives import Limits, check_zip, clashing, wrong_name
from paceline.store import transaction

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO


LIMITS = Limits()


def check_package(path: Path, limits: Limits = LIMITS) -> None:
    """Raise ArchiveError that names the first thing wrong with a wheel or a source distribution."""
    if path.name.endswith(".tar.gz"):
        _check_tar(path, limits)
    else:
        check_zip(path, limits)


def admit(path: Path) -> None:
    """Check a file that has come; one that is refused is deleted. Raises ArchiveError."""
    try:
        check_package(path)
    except ArchiveError:
        transaction.discard(path)
        raise


def _check_tar(path: Path, limits: Limits) -> None:
    """Names and links stay inside, nothing is a device or brings rights, and there is an end to it."""
    files: list[str] = []
    folders: set[str] = set()
    try:
        with gzip.open(path) as unpacked:
            stream = _Bounded(path, unpacked, limits)
            archive = tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:")  # noqa: SIM115 - `unpacked` is closed
            while (member := archive.next()) is not None:
                if len(files) + len(folders) >= limits.files:
                    raise _refused(path, f"it has more than {limits.files} files")
                if problem := _wrong(member):
                    raise _refused(path, f"its file {member.name!r} {problem}")
                name = member.name.removeprefix("./")
                if member.isdir():
                    folders.add(f"{name}/")
                else:
                    files.append(name)
                if sum(len(key) + len(value) for key, value in archive.pax_headers.items()) > _MOST_HEADERS:
                    raise _refused(path, f"what it says of all its files has more than {_MOST_HEADERS} bytes")
                archive.members.clear()  # type: ignore[attr-defined]
                stream.next_member()
            stream.read_to_the_end()
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise _refused(path, f"it is damaged: {error}") from None
    if problem := clashing([*files, *folders]):
        raise _refused(path, problem)


class _Bounded:
    """What tarfile reads of the unpacked stream: an end to the whole, and to what describes one of its files.

    `tarfile` reads headers, and the long names and fields that stand before some, as a whole into memory, of whatever
    size they say they are; contents it passes over by seeking.
    """

    def __init__(self, path: Path, stream: gzip.GzipFile, limits: Limits) -> None:
        self._path, self._stream = path, stream
        self._held = path.stat().st_size
        self._most = min(limits.unpacked_bytes, limits.always + limits.ratio * self._held)
        self._read = 0

    def read(self, size: int) -> bytes:
        self._read += size
        if self._read > _MOST_HEADERS:
            raise _refused(self._path, f"what describes one of its files has more than {_MOST_HEADERS} bytes")
        data = self._stream.read(size)
        self._check()
        return data

    def seek(self, position: int) -> None:
        while (left := position - self.tell()) > 0 and self._stream.read(min(left, _CHUNK)):
            self._check()

    def tell(self) -> int:
        return self._stream.tell()

    def next_member(self) -> None:
        """What is read from now on describes another file."""
        self._read = 0

    def read_to_the_end(self) -> None:
        """So that the checksum of the whole is compared."""
        while self._stream.read(_CHUNK):
            self._check()

    def _check(self) -> None:
        if self.tell() > self._most:
            raise _refused(self._path, f"its {self._held} bytes unpack to more than {self._most}")


_CHUNK = 1 << 20
_MOST_HEADERS = 1 << 20
"""Bytes; a path of the greatest length that a system takes has 4096."""


def _wrong(member: tarfile.TarInfo) -> str | None:
    if member.isfile() and member.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
        return f"has a mode ({member.mode & 0o7777:04o}) that gives it somebody else's rights"
    if member.issym() or member.islnk():
        if problem := _wrong_link(member):
            return problem
    elif not (member.isfile() or member.isdir()) or member.issparse():
        return "is a device or something else that no package needs"
    return wrong_name(member.name.removeprefix("./") or "root")


def _wrong_link(member: tarfile.TarInfo) -> str | None:
    """Why a link may lead outside, by its name alone: no file lies below a link, so where it stands is where it is."""
    start = posixpath.dirname(member.name) if member.issym() else ""
    target = posixpath.normpath(posixpath.join(start, member.linkname))
    if target.startswith("/") or target.split("/")[0] == ".." or "\\" in target:
        return f"is a link to {member.linkname!r}, outside of it"
    steps = [step for step in member.linkname.split("/") if step not in ("", ".")]
    if ".." in dropwhile("..".__eq__, steps):  # what it leads down through may be a link
        return f"is a link to {member.linkname!r}, which leads down and up again"
    return None


def _refused(path: Path, problem: str) -> ArchiveError:
    return ArchiveError(
        f"{path.name} is not unpacked: {problem}", help="get it again from where it was made, or make it anew"
    )
