"""Files that two wheels have in common, such as two versions of one package, kept once.

uv unpacks a wheel into its cache and links the files into every environment that needs them. Two wheels share nothing:

    <cache>/uv/archive-v0/<one for each wheel>/<path from the folder of packages>

So a file that equals the one of the same path in an installed runtime becomes a link to that one, in the new
environment and in uv's cache. Each change is one rename over a file, so nobody ever finds another content, or none.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from operator import attrgetter
from stat import S_ISREG
from typing import TYPE_CHECKING

from paceline.store import transaction
from paceline.store.digests import files_below
from paceline.store.manifest import packages_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from paceline.store.digests import Digests

_MARK = "WHEEL"
"""What every wheel has in its dist-info and uv links as it is. Never shared, it tells whose files others are."""
_told = attrgetter("st_dev", "st_size", "st_mode", "st_uid", "st_gid")
"""What two equal files have in common when the one may stand for the other. Another owner could change it."""
_BLOCK = 1 << 20


def share(environment: Path, others: Iterable[Path], cache: Path, digests: Digests) -> None:
    """Link what `environment`, in a staging folder, has in common with `others`, installed ones, to their files.

    Only what uv linked into it from its cache: what was copied or cloned stays as it is. Each file is compared byte by
    byte, so what is damaged in an installed runtime does not come into the new one. Where something cannot be linked
    (another file system, no right, no room, too many links) the copy stays. What `digests` knows it knows afterwards.
    """
    installed = [(folder, _infos(folder)) for other in others for folder in packages_of(other)]
    if not installed:
        return
    names = environment.with_name(".shared.a"), environment.with_name(".shared.b")
    with suppress(OSError), _not_cleaned(cache / "uv"):
        archives = tuple((cache / "uv").glob("archive-v*/*"))
        for packages in packages_of(environment):
            for project, info in _infos(packages).items():
                versions = [(folder, infos[project]) for folder, infos in installed if project in infos]
                with suppress(OSError):
                    _share_package(packages, info, versions, archives, names, digests)


def _infos(packages: Path) -> dict[str, str]:
    """By project, the name of its dist-info; empty where the folder cannot be read."""
    with suppress(OSError):
        found = sorted(path.name for path in packages.iterdir() if path.name.endswith(".dist-info"))
        return {info.partition("-")[0]: info for info in found}
    return {}


def _share_package(
    packages: Path,
    info: str,
    versions: Iterable[tuple[Path, str]],
    archives: Iterable[Path],
    names: tuple[Path, Path],
    digests: Digests,
) -> None:
    """`versions`: where else the package is installed, and as what."""
    wheel = (packages / info / _MARK).stat()
    others: dict[int, Path] = {}
    for folder, its_info in versions:
        its_wheel = _status(f"{folder}/{its_info}/{_MARK}")
        if its_wheel is None or its_wheel.st_dev != wheel.st_dev:
            continue
        if its_info == info and os.path.samestat(its_wheel, wheel):
            return
        others.setdefault(its_wheel.st_ino, folder)
    archive = _unpacked(wheel, info, archives) if others and wheel.st_nlink > 1 else None
    if archive is None:
        return
    for path, kept in files_below(archive).items():
        ours = _status(f"{packages}/{path}") if path != f"{info}/{_MARK}" else None
        if ours is None or not (ours.st_size and S_ISREG(ours.st_mode) and os.path.samestat(ours, kept)):
            continue
        for folder in others.values():
            theirs = _status(f"{folder}/{path}")
            if theirs is None or _told(theirs) != _told(ours):
                continue
            if os.path.samestat(theirs, ours):
                break
            if linked := _link(f"{folder}/{path}", f"{packages}/{path}", f"{archive}/{path}", names):
                digests.take_over(ours, linked)
                break


def _unpacked(wheel: os.stat_result, info: str, archives: Iterable[Path]) -> Path | None:
    """Where uv has unpacked a wheel, by its mark; None for one whose files it did not link."""
    for archive in archives:
        if (found := _status(f"{archive}/{info}/{_MARK}")) and os.path.samestat(found, wheel):
            return archive
    return None


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _link(twin: str, ours: str, kept: str, names: tuple[Path, Path]) -> os.stat_result | None:
    """Make `ours` and `kept`, one file, links to `twin` if that has the same bytes; its status then.

    What is compared is what is linked, whatever happens to the name `twin`. `names` are of the staging folder.
    """
    first, second = names
    try:
        transaction.step("link", first)
        os.link(twin, first)
        if _equal(first, ours):
            linked = os.lstat(first)
            transaction.step("link", second)
            os.link(first, second)
            transaction.step("rename", second)
            os.replace(second, kept)  # noqa: PTH105 - thousands of files, and Path costs more than linking
            transaction.step("rename", first)
            os.replace(first, ours)  # noqa: PTH105
            return linked
    except OSError:
        pass
    for name in names:
        transaction.discard(name)
    return None


def _equal(a: Path, b: str) -> bool:
    with open(a, "rb", buffering=0) as one, open(b, "rb", buffering=0) as other:  # noqa: PTH123
        while (block := one.read(_BLOCK)) == other.read(_BLOCK):
            if not block:
                return True
    return False


@contextmanager
def _not_cleaned(uv: Path) -> Iterator[None]:
    """Hold the lock of uv's cache as uv does that uses it: who cleans it waits. Raises OSError when it is cleaned now.

    Windows does without: there a folder out of which files are deleted may once not be empty for a moment.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(uv / ".lock", os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
