"""Newer releases from upstream: the package index the user has configured, no server of ours in between.

A release's recipe says what it is made of. The same roots are resolved again with the engine's package free within the
versions that its plugin can drive; what comes out is locked with hashes and remembered as a release like any other.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from paceline.errors import InstallError, RegistryError
from paceline.packages.resolution import Resolver
from paceline.registry import FOUND, found_upstream, registry_value
from paceline.store import transaction
from paceline.versions import order

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from paceline.types import Release, Upstream


def newest(
    release: Release,
    upstream: Upstream,
    *,
    cache: Path,
    minimum_age: timedelta = timedelta(0),
    prerelease: bool = False,
    without: Collection[str] = (),
    now: datetime | None = None,
) -> Release | None:
    """The newest release the package index allows for the platform of `release`; None when that one is not older.

    It is locked for the Python that runtimes are built on here. `minimum_age`: what was uploaded later than so long
    before `now` is not looked at, which needs an index that publishes upload times. `without`: versions that are not to
    be found. Raises InstallError when the index cannot be asked or has no such package.
    """
    now = now or datetime.now(UTC)
    python = ".".join(platform.python_version_tuple()[:2])
    resolver = Resolver(
        release.requires,
        [python],
        cache=cache / "resolution",
        exclude_newer=(now - minimum_age).isoformat() if minimum_age else None,
        prerelease=prerelease,
        anew=[upstream.package],
    )
    roots = [_loosened(root, upstream, without) for root in release.recipe.roots]
    packages = resolver.packages(release.recipe, roots)
    name = str(canonicalize_name(upstream.package))
    version = next((p.version for p in packages if p.name == name), None)
    if version is None:
        raise InstallError(
            f"the recipe of {release.id} does not install {name}", help="report it to the plugin's author"
        )
    if order(version) <= order(release.version):
        return None
    recipe = replace(
        release.recipe,
        packages=packages,
        build_packages=resolver.build_packages(release.recipe.build_roots),
        roots=tuple(f"{_bare(root)}=={version}" if _is(root, upstream) else root for root in roots),
    )
    return replace(
        release,
        version=version,
        channel="beta" if Version(version).is_prerelease else "stable",
        requires=replace(release.requires, python=f"=={python}.*"),
        recipe=recipe,
        notes=f"Found in the package index on {now:%Y-%m-%d}.",
        published=resolver.uploaded.get(name, now).isoformat(timespec="seconds"),
    )


def can_be_asked(release: Release, upstream: Upstream | None) -> bool:
    """Whether the package index can say anything about newer releases of this kind."""
    return (
        upstream is not None
        and not release.recipe.unhashed
        and any(_is(root, upstream) for root in release.recipe.roots)
    )


def remember(file: Path, releases: Iterable[Release]) -> None:
    """Add `releases` to those found before, or put them into their place; a damaged file begins anew.

    Nothing is written where nothing changes. Raises OSError for a file that cannot be written.
    """
    try:
        found = found_upstream(file)
    except RegistryError:
        found = None
    known = {release.id: release for release in found or ()}
    as_read = dict(known)
    for release in releases:
        before = known.get(release.id)
        if before is None or replace(before, notes=release.notes, published=release.published) != release:
            known[release.id] = release
    if found is None or known != as_read:
        transaction.write_json(file, registry_value(known[id] for id in sorted(known)))


def template(releases: Iterable[Release], name: str) -> Release | None:
    """What the package index is asked about for all releases called `name`, given newest first.

    That is the newest that the index did not bring itself: what it said before, of another channel or for another
    Python, must not decide what it is asked now.
    """
    named = [release for release in releases if release.name == name]
    return next((release for release in named if release.source != FOUND), named[-1] if named else None)


def _loosened(root: str, upstream: Upstream, without: Collection[str]) -> str:
    if _is(root, upstream):
        return _bare(root) + ",".join([upstream.versions, *(f"!={version}" for version in sorted(without))])
    requirement = Requirement(root)
    pinned = [specifier.version for specifier in requirement.specifier if specifier.operator == "=="]
    return f"{_bare(root)}>={pinned[0]}" if pinned else root


def _is(root: str, upstream: Upstream) -> bool:
    return canonicalize_name(Requirement(root).name) == canonicalize_name(upstream.package)


def _bare(root: str) -> str:
    requirement = Requirement(root)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}"
