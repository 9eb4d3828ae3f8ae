"""What an installation needs and the cache lacks is brought here before uv runs: resumable, and counted in bytes."""

from __future__ import annotations

import queue
import shutil
import threading
from typing import TYPE_CHECKING, Protocol

from paceline.errors import DownloadError, InstallError
from paceline.packages.download import partial_of
from paceline.packages.source_archives import admit
from paceline.progress import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from paceline.packages import download
    from paceline.packages.depot import Depot, PackageFile
    from paceline.progress import Progress
    from paceline.types import Package

AT_ONCE = 4
"""So many files are fetched at the same time."""
_REFUSED = (401, 403, 407)


class Supply(Protocol):
    """Where the files of packages come from."""

    def files(self, packages: Sequence[Package]) -> Mapping[str, Sequence[PackageFile]]:
        """By name, the files with a pinned hash that fit. What it does not have is absent."""

    def bring(self, file: PackageFile, target: Path, progress: download.Progress) -> None:
        """Put one file there, having compared its hash. Called in threads; what `progress` raises ends it."""


class Carrier(Supply, Protocol):
    """A supply that brings what no index publishes a hash of, too."""

    def unhashed(self, packages: Sequence[Package]) -> Mapping[str, PackageFile]:
        """By name, which file each of those packages is that came without a published hash.

        Raises ArchiveError when one is missing, or another than its package is pinned to by now.
        """


def gather(
    packages: Sequence[Package], depot: Depot, supply: Supply, progress: Progress
) -> tuple[PackageFile, ...] | None:
    """Bring the files of `packages` into `depot`; returns them.

    What an installation that broke off has brought whole is there already, and nobody is asked about it. None when
    `supply` does not have all of them, or may not fetch them: then uv has to see for itself. Raises
    InstallError when the disk has no room for them, DownloadError, and what `progress` raises.
    """
    here = {package: file for package in packages if (file := depot.find(package)) is not None}
    for file in here.values():
        admit(depot.path(file))
    wanted = _files([package for package in packages if package not in here], supply)
    if wanted is None:
        return None
    needed = [file for file in wanted if file.url is not None]
    check_room(needed, depot)
    try:
        bring_all(needed, depot, supply, progress)
    except DownloadError as error:
        if error.status in _REFUSED:  # uv may know a password that we do not
            return None
        raise
    gathered = (*here.values(), *needed)
    depot.add(gathered)
    return gathered


def _files(packages: Sequence[Package], supply: Supply) -> list[PackageFile] | None:
    """The files of `packages`, of which two may be versions of one; None when one has none."""
    files: dict[str, PackageFile] = {}
    left = list(packages)
    while left:
        asked = {package.name: package for package in reversed(left)}
        left = [package for package in left if package is not asked[package.name]]
        found = supply.files(list(asked.values()))
        if not all(found.get(name) for name in asked):
            return None
        files |= {file.sha256: file for name in asked for file in found[name]}
    return list(files.values())


def check_room(files: Collection[PackageFile], depot: Depot) -> None:
    """Raise InstallError with the numbers when the cache's disk is too full for `files`."""
    missing = 0
    for file in files:
        path = depot.path(file)
        here = next((p.stat().st_size for p in (path, partial_of(path)) if p.exists()), 0)
        missing += max(0, (file.size or 0) - here)
    existing = next(f for f in (depot.folder, *depot.folder.parents) if f.exists())
    if missing > (free := shutil.disk_usage(existing).free):
        raise InstallError(
            f"the packages need {missing / 1e6:.0f} MB in {depot.folder}, where {free / 1e6:.0f} MB are free",
            help="`paceline runtime prune --cache` frees space; or set PACELINE_CACHE to a folder on another disk",
        )


def bring_all(files: Sequence[PackageFile], depot: Depot, supply: Supply, progress: Progress) -> None:
    """Fetch several at once. Progress is told from here alone; what it raises, or an error of one, ends the others."""
    work: queue.SimpleQueue[PackageFile] = queue.SimpleQueue()
    for file in sorted(files, key=lambda f: -(f.size or 0)):
        work.put(file)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    given_up = threading.Event()
    here: dict[str, int] = {}
    said: list[str] = []

    def report(file: PackageFile) -> Callable[..., None]:
        def told(done: int, total: int | None, message: str = "") -> None:
            if given_up.is_set():
                raise _GivenUp
            here[file.sha256] = done
            said[:] = [f"{file.name}: {message}"] if message else []

        return told

    def run() -> None:
        try:
            while not given_up.is_set():
                file = work.get_nowait()
                supply.bring(file, depot.path(file), report(file))
        except queue.Empty:
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    # Daemons, because one that waits for a silent server must not keep a cancelled process alive.
    crew = [threading.Thread(target=run, daemon=True) for _ in range(min(AT_ONCE, len(files)))]
    total = sum(f.size or 0 for f in files) if all(f.size is not None for f in files) else None
    try:
        for thread in crew:
            thread.start()
        left = len(crew)
        while left:
            progress(Phase.DOWNLOAD, sum(here.values()), total, said[0] if said else "")
            try:
                error = ended.get(timeout=0.2)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            left -= 1
        progress(Phase.DOWNLOAD, sum(here.values()), total)
    finally:
        given_up.set()


class _GivenUp(Exception):
    """Nobody wants the rest any more."""
