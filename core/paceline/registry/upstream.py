"""Newer releases from upstream: the package index the user has configured, no server of ours in between.

A release's recipe says what it is made of. The same roots are resolved again with the engine's package free within the
versions that its plugin can drive; what comes out is locked with hashes and remembered as a release like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from paceline.errors import IncompatibleError, InstallError, NoSolutionError, NotFoundError, RegistryError
from paceline.packages import python_versions
from paceline.packages.locked import applies, joined
from paceline.packages.resolution import Resolver
from paceline.registry import FOUND, found_upstream, registry_value
from paceline.store import transaction
from paceline.versions import order

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from paceline.types import Package, Release, Upstream


@dataclass(frozen=True)
class Newest:
    """What the package index answers when it is asked for the newest version."""

    version: str
    """Of the engine's package, be it newer or not than what was asked about."""
    release: Release | None
    """The answer as a release; None when that one is not newer."""


def newest(
    release: Release,
    upstream: Upstream,
    *,
    cache: Path,
    minimum_age: timedelta = timedelta(0),
    prerelease: bool = False,
    without: Collection[str] = (),
    now: datetime | None = None,
) -> Newest:
    """The newest release the package index allows for the platform of `release`.

    It is locked for the Python that runtimes are built on here; others come by `join`. `minimum_age`: what was uploaded
    later than so long before `now` is not looked at, which needs an index that publishes upload times. `without`:
    versions that are not to be found. Raises InstallError when the index cannot be asked or has no such package.
    """
    now = now or datetime.now(UTC)
    question = _Question(
        release,
        upstream,
        ",".join([upstream.versions, *(f"!={version}" for version in sorted(without))]),
        cache,
        exclude_newer=(now - minimum_age).isoformat() if minimum_age else None,
        prerelease=prerelease,
    )
    is_newer = order(question.version) > order(release.version)
    return Newest(question.version, question.release(now) if is_newer else None)


def exactly(
    release: Release,
    upstream: Upstream,
    version: str,
    *,
    cache: Path,
    wanted: Sequence[str] = (),
    like: Release | None = None,
    others: Iterable[Release] = (),
    now: datetime | None = None,
) -> Release:
    """What `release` is in this version of the engine's package, locked for the Pythons `wanted`, by default that here.

    `like`: the same release as it is locked for other Pythons; its packages stay in their versions where they can.
    `others`: releases of other platforms, to say which of them have the version where this platform has not. Raises
    NotFoundError for a version that the plugin does not drive or the index does not have so, with what it has instead;
    IncompatibleError for a Python that `release` does not admit; InstallError when the index cannot be asked.
    """
    if not SpecifierSet(upstream.versions).contains(version, prereleases=True):
        raise NotFoundError(
            f"{release.engine} drives {upstream.package} {upstream.versions}, and {version} is not of these versions",
            help="name one of them; a newer Paceline, or a newer plugin, may drive others",
        )
    # What an index brought admits only the Pythons that it is locked for by now.
    limit = release.requires.python if release.source != FOUND else None
    needed = sorted(wanted or [python_versions.here()], key=Version)
    if unfit := [python for python in needed if not python_versions.is_admitted(python, limit)]:
        raise IncompatibleError(
            f"{release.name} is made for Python {limit}, and {python_versions.listed(unfit)} is not of these",
            help=_choose(python_versions.admitted(limit), wanted),
        )
    try:
        question = _Question(release, upstream, f"=={version}", cache, wanted=needed, like=like)
        return question.release(now or datetime.now(UTC))
    except NoSolutionError as error:
        missing = _Missing(release, upstream, version, cache, error)
        raise missing.explained(needed, limit, others, chosen=bool(wanted)) from None


def join(before: Release, found: Release) -> Release:
    """`found`, with what `before`, the same release, is locked for besides: other Pythons.

    Not where anything else of the two differs, because then it is another lock.
    """
    ours, theirs = python_versions.named_by(found.requires.python), python_versions.named_by(before.requires.python)
    left = [python for python in theirs if python not in ours]
    if not left or not ours or _unlocked(before) != _unlocked(found):
        return found

    def both(old: Iterable[Package], new: Iterable[Package]) -> tuple[Package, ...]:
        locks = {python: [p for p in old if applies(p, python)] for python in left}
        return joined(locks | {python: [p for p in new if applies(p, python)] for python in ours})

    return replace(
        found,
        requires=replace(found.requires, python=python_versions.specifier_of([*left, *ours])),
        recipe=replace(
            found.recipe,
            packages=both(before.recipe.packages, found.recipe.packages),
            build_packages=both(before.recipe.build_packages, found.recipe.build_packages),
        ),
    )


def _unlocked(release: Release) -> Release:
    """What a release is, whatever it is locked to."""
    return replace(
        release,
        requires=replace(release.requires, python=None),
        recipe=replace(release.recipe, packages=(), build_packages=()),
        notes="",
        published=None,
    )


class _Missing:
    """Finds out what there is instead of a version that cannot be had as it was asked for."""

    def __init__(self, release: Release, upstream: Upstream, version: str, cache: Path, error: NoSolutionError) -> None:
        self._release, self._upstream, self._version, self._cache = release, upstream, version, cache
        self._error = error

    def explained(
        self, needed: Sequence[str], limit: str | None, others: Iterable[Release], *, chosen: bool
    ) -> InstallError | NotFoundError:
        """The error to raise. `chosen`: whether the Pythons `needed` can be chosen, as for a bundle."""
        said, release = self._error.message.rstrip("."), self._release
        has = f"the package index has {self._upstream.package} {self._version} with all that it needs"
        wanted = f"not for Python {python_versions.listed(needed)} on {release.platform}"
        if there := [p for p in {*python_versions.admitted(limit), *needed} if self._is_there(release, p)]:
            return NotFoundError(
                f"{has} for Python {python_versions.listed(there)} on {release.platform}, and {wanted}: {said}",
                help=_choose(there, chosen),
            )
        if elsewhere := [r.platform for r in others if r.name != release.name and self._is_there(r, *needed)]:
            return NotFoundError(
                f"{has} for {', '.join(elsewhere)}, and {wanted}: {said}",
                help="choose one of these platforms with --platform, or another version",
            )
        try:
            newest = self._asked(release, self._upstream.versions, needed).version
        except InstallError:
            return self._error
        return NotFoundError(
            f"{said}; the newest that the package index has of {self._upstream.versions}, which {release.engine} "
            f"drives, is {newest}",
            help=f"`{release.name}@{newest}` names that one",
        )

    def _is_there(self, release: Release, *wanted: str) -> bool:
        try:
            self._asked(release, f"=={self._version}", wanted)
        except InstallError:
            return False
        return True

    def _asked(self, release: Release, versions: str, wanted: Sequence[str]) -> _Question:
        return _Question(release, self._upstream, versions, self._cache, wanted=wanted, anew=False)


def _choose(there: Collection[str], chosen: object) -> str:
    """The way out for Pythons that have nothing."""
    those = f"Python {python_versions.listed(there)}" if there else "another Python"
    return f"choose {those} with --python, or another version" if chosen else f"run Paceline with {those}"


class _Question:
    """The roots of a release resolved again, with the engine's package free within `versions`."""

    def __init__(
        self,
        release: Release,
        upstream: Upstream,
        versions: str,
        cache: Path,
        *,
        exclude_newer: str | None = None,
        prerelease: bool = False,
        wanted: Sequence[str] = (),
        like: Release | None = None,
        anew: bool = True,
    ) -> None:
        self._release, self._upstream = release, upstream
        self._pythons = list(wanted) or [python_versions.here()]
        self._resolver = Resolver(
            release.requires,
            self._pythons,
            cache=cache / "resolution",
            exclude_newer=exclude_newer,
            prerelease=prerelease,
            anew=[upstream.package] if anew else (),
        )
        roots = [_loosened(root, upstream, versions) for root in release.recipe.roots]
        self._build_packages = like.recipe.build_packages if like is not None else ()
        prefer = like.recipe.packages if like is not None else ()
        self._packages = self._resolver.packages(release.recipe, roots, prefer=prefer)
        self._name = str(canonicalize_name(upstream.package))
        version = next((p.version for p in self._packages if p.name == self._name), None)
        if version is None:
            raise InstallError(
                f"the recipe of {release.id} does not install {self._name}", help="report it to the plugin's author"
            )
        self.version = version
        """Of the engine's package."""

    def release(self, now: datetime) -> Release:
        """The answer as a release, with what building it needs."""
        before, recipe = self._release, self._release.recipe
        return replace(
            before,
            version=self.version,
            channel="beta" if Version(self.version).is_prerelease else "stable",
            requires=replace(before.requires, python=python_versions.specifier_of(self._pythons)),
            recipe=replace(
                recipe,
                packages=self._packages,
                build_packages=self._resolver.build_packages(recipe.build_roots, prefer=self._build_packages),
                roots=tuple(
                    f"{_bare(root)}=={self.version}" if _is(root, self._upstream) else root for root in recipe.roots
                ),
            ),
            notes=f"Found in the package index on {now:%Y-%m-%d}.",
            published=self._resolver.uploaded.get(self._name, now).isoformat(timespec="seconds"),
        )


def can_be_asked(release: Release, upstream: Upstream | None) -> bool:
    """Whether the package index can say anything about newer releases of this kind."""
    return (
        upstream is not None
        and not release.recipe.unhashed
        and any(_is(root, upstream) for root in release.recipe.roots)
    )


def remember(file: Path, releases: Iterable[Release], *, forgotten: Collection[str] = ()) -> None:
    """Add `releases` to those found before, or `join` them with what was locked before; a damaged file begins anew.

    The `forgotten` (ids) are left out from now on. Nothing is written where nothing changes. Raises OSError for a file
    that cannot be written.
    """
    from filelock import FileLock

    releases = list(releases)
    if _with(file, releases, forgotten) is None:
        return
    with FileLock(transaction.make_folder(file.parent / "locks") / "upstream.lock"):
        transaction.sweep_unfinished(file)
        if (
            known := _with(file, releases, forgotten)
        ) is not None:  # another process may have remembered them meanwhile
            transaction.write_json(file, registry_value(known[id] for id in sorted(known)))


def _with(file: Path, releases: Iterable[Release], forgotten: Collection[str]) -> dict[str, Release] | None:
    """By id, what `file` should hold, `releases` included and the `forgotten` not; None when it does."""
    try:
        found = found_upstream(file)
    except RegistryError:
        found = None
    as_read = {release.id: release for release in found or ()}
    known = {id: release for id, release in as_read.items() if id not in forgotten}
    for release in releases:
        before = known.get(release.id)
        release = release if before is None else join(before, release)
        if before is None or replace(before, notes=release.notes, published=release.published) != release:
            known[release.id] = release
    return known if found is None or known != as_read else None


def template(releases: Iterable[Release], name: str) -> Release | None:
    """What the package index is asked about for all releases called `name`, given newest first.

    That is the newest that the index did not bring itself: what it said before, of another channel or for another
    Python, must not decide what it is asked now.
    """
    named = [release for release in releases if release.name == name]
    return next((release for release in named if release.source != FOUND), named[-1] if named else None)


def _loosened(root: str, upstream: Upstream, versions: str) -> str:
    """A root of a recipe as the index is asked for it: the engine's package in `versions`, others from their pin up."""
    if _is(root, upstream):
        return _bare(root) + versions
    requirement = Requirement(root)
    pinned = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
    if not pinned or pinned[0].endswith("*"):
        return root
    return f"{_bare(root)}>={pinned[0]},<{_next_breaking(Version(pinned[0]))}"


def _next_breaking(version: Version) -> str:
    """The first version that may break what worked with `version`: the next major one, below 1.0 the next minor one."""
    epoch = f"{version.epoch}!" if version.epoch else ""
    return f"{epoch}{version.major + 1}" if version.major else f"{epoch}0.{version.minor + 1}"


def _is(root: str, upstream: Upstream) -> bool:
    return canonicalize_name(Requirement(root).name) == canonicalize_name(upstream.package)


def _bare(root: str) -> str:
    requirement = Requirement(root)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}"
