"""Source distributions, looked at before uv unpacks and builds them; wheels are looked at by `archives`."""

from __future__ import annotations

import posixpath
import stat
import tarfile
import zlib
from typing import TYPE_CHECKING

from paceline.errors import ArchiveError
from paceline.packages.archives import Limits, check_zip, wrong_name
from paceline.store import transaction

if TYPE_CHECKING:
    from pathlib import Path


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
    most = min(limits.unpacked_bytes, limits.always + limits.ratio * path.stat().st_size)
    unpacked = count = 0
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                unpacked, count = unpacked + member.size, count + 1
                if unpacked > most:
                    raise _refused(path, f"its {path.stat().st_size} bytes unpack to more than {most}")
                if count > limits.files:
                    raise _refused(path, f"it has more than {limits.files} files")
                if problem := _wrong(member):
                    raise _refused(path, f"its file {member.name!r} {problem}")
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise _refused(path, f"it is damaged: {error}") from None


def _wrong(member: tarfile.TarInfo) -> str | None:
    if member.isfile() and member.mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX):
        return f"has a mode ({member.mode & 0o7777:04o}) that gives it somebody else's rights"
    if member.issym() or member.islnk():
        start = posixpath.dirname(member.name) if member.issym() else ""
        target = posixpath.normpath(posixpath.join(start, member.linkname))
        if target.startswith(("/", "..")) or "\\" in target:
            return f"is a link to {member.linkname!r}, outside of it"
    elif not (member.isfile() or member.isdir()):
        return "is a device or something else that no package needs"
    return wrong_name(member.name.removeprefix("./") or "root")


def _refused(path: Path, problem: str) -> ArchiveError:
    return ArchiveError(
        f"{path.name} is not unpacked: {problem}", help="get it again from where it was made, or make it anew"
    )
