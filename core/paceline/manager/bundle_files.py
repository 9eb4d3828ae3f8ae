"""Which files a bundle holds of a release: what its lock says, for one Python and the platform of the release."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paceline.errors import DownloadError, InstallError, NoSolutionError
from paceline.manager.installation import check_pinned
from paceline.packages import first_use, python_versions, targets, unhashed
from paceline.packages.depot import BUNDLES, Depot, PackageFile
from paceline.packages.indexes import Indexes
from paceline.packages.locked import applies, pinned_to
from paceline.packages.wheels import read_wheel
from paceline.progress import Phase
from paceline.types import Requirements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paceline.progress import Progress
    from paceline.types import Package, Release


@dataclass(frozen=True)
class Found:
    """The files of a release for one Python."""

    files: list[PackageFile]
    unhashed: list[Package]
    """Packages that no index publishes a hash of, pinned to what is there."""
    place: str
    """Where that is the first use of them (see `first_use`)."""


def find(
    release: Release,
    python: str,
    home: Path,
    cache: Path,
    progress: Progress,
    *,
    wheels: Mapping[str, Path],
    allow_unpinned: bool,
) -> Found:
    """Every file that installing `release` on Python `python` takes, by the versions and hashes of its lock.

    Packages without a hash are fetched already, to know what they are; what `home` has recorded of them counts as their
    hash. `wheels`: by sha256, files that are here and in no index. Raises UnpinnedError, InstallError when a file is
    missing, DownloadError when one is another than it has to be.
    """
    place = first_use.place(release.requires, python)
    recipe = first_use.pinned(release.recipe, home, [place])
    if not allow_unpinned:
        check_pinned(replace(release, recipe=recipe))
    built = any(p.source for p in recipe.packages)
    files: list[PackageFile] = []
    on_pages: list[Package] = []
    with closing(Indexes(cache, release.requires, python)) as indexes:
        for packages in (recipe.packages, recipe.build_packages if built else ()):
            here = [digest for p in packages for digest in p.sha256 if digest in wheels]
            files += [_wheel_here(wheels[digest], digest, release, python) for digest in here]
            wanted = [p for p in packages if not wheels.keys() & set(p.sha256)]
            on_pages += [p for p in wanted if p.index and applies(p, python)]
            files += _of_index([p for p in wanted if not p.index], release, python, indexes, cache)
        try:
            fetched = _of_pages(on_pages, indexes, Depot(cache / BUNDLES), progress)
        except DownloadError as error:
            error.help = first_use.way_out(error, recipe, home, place) or error.help
            raise
    seen = [p for p in release.recipe.unpinned if p.name in fetched]
    pinned = [pinned_to(p, {fetched[p.name].sha256: fetched[p.name].size}) for p in seen]
    return Found([*files, *fetched.values()], pinned, place)


def _of_index(
    packages: Sequence[Package], release: Release, python: str, indexes: Indexes, cache: Path
) -> list[PackageFile]:
    """The files in the indexes that the user has configured of those `packages` that Python `python` takes.

    Raises NoSolutionError when one is missing, with the Pythons for which none is.
    """
    try:
        return _located(packages, release, python, indexes)
    except NoSolutionError as error:
        there = []
        for other in python_versions.admitted(release.requires.python):
            with suppress(InstallError), closing(Indexes(cache, release.requires, other)) as others:
                if other != python and _located(packages, release, other, others):
                    there.append(other)
        if there:
            listed = python_versions.listed(there)
            error = NoSolutionError(
                f"{error.message.rstrip('.')}; for Python {listed} there are files of all packages",
                help=f"choose Python {listed} with --python",
            )
        raise error from None


def _located(packages: Sequence[Package], release: Release, python: str, indexes: Indexes) -> list[PackageFile]:
    """Of `packages`, those that Python `python` takes. Raises NoSolutionError when one is missing."""
    wanted = [p for p in packages if applies(p, python)]
    found = indexes.locate(wanted)
    files = {p.name: [_from_where_it_is(f) for f in found.get(p.name, ()) if f.url or f.here] for p in wanted}
    for package in wanted:
        if not files[package.name]:
            raise NoSolutionError(
                f"the package index has no file of {package.name} {package.version} for Python {python} on "
                f"{release.platform} that {release.id} is locked to",
                help="choose other Pythons with --python, or check the index that UV_DEFAULT_INDEX names",
            )
    return [file for found in files.values() for file in found]


def _from_where_it_is(file: PackageFile) -> PackageFile:
    """With an address to fetch it from, also where it lies in a folder of this machine."""
    return file if file.url is not None else replace(file, url=file.here)


def _of_pages(
    packages: Sequence[Package], indexes: Indexes, depot: Depot, progress: Progress
) -> dict[str, PackageFile]:
    """By name, the wheels on index pages of their own, fetched. Raises DownloadError."""
    if not packages:
        return {}
    progress(Phase.DOWNLOAD, message="looking at packages on index pages of their own")
    wanted = unhashed.locate(packages, indexes, depot)
    brought = unhashed.bring(wanted, indexes, depot, progress)
    for package in packages:
        if package.sha256 and (got := brought[package.name].sha256) not in package.sha256:
            raise DownloadError(
                f"{package.name} {package.version} at {package.index} has the sha256 {got}, not "
                f"{' or '.join(package.sha256)}"
            )
    return {each.package.name: replace(brought[each.package.name], url=each.listed.url) for each in wanted}


def _wheel_here(path: Path, sha256: str, release: Release, python: str) -> PackageFile:
    """A wheel that is here and in no index. Raises InstallError when it is another one or not for Python `python`."""
    wheel = read_wheel(path)
    if wheel.sha256 != sha256:
        raise InstallError(
            f"{release.id} cannot be bundled: {path} is not the file that it was made with",
            help="make the runtime anew: `paceline runtime get PATH` with the wheel it was made with",
        )
    if wheel.tags.isdisjoint(targets.oldest(Requirements(), python).tags):
        raise InstallError(
            f"{release.id} cannot be bundled for Python {python}: its {path.name} is for another one",
            help="choose the wheel's own Python with --python, or install one that is built for that Python",
        )
    return PackageFile(path.name, wheel.sha256, path.stat().st_size)
