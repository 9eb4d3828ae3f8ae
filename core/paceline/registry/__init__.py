"""The catalogue of releases: the shipped registry.json, what engines and signed registries bring, and what was found.

Of releases with one id, an engine's own counts first, then the shipped one, then those of the signed registries in the
order they were trusted, then what was found in a package index. So nobody from outside says anew what a release that is
known here is made of; but a signed registry may add the hashes that a known release lacks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from paceline import paths, query
from paceline.errors import RegistryError, StoreError
from paceline.packages.locked import files_of, pinned_to
from paceline.registry.reading import read_registry
from paceline.registry.writing import registry_text, registry_value
from paceline.types import Release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from paceline.plugins import Plugins

__all__ = [
    "Registry",
    "Remark",
    "found_file",
    "found_upstream",
    "load_registry",
    "read_registry",
    "registry_text",
    "registry_value",
]

SHIPPED = "paceline"
"""The source of releases that the shipped registry lists."""
FOUND = "package index"
"""The source of releases that `runtime update` found."""

_FRESH = timedelta(days=1)
"""What was verified longer ago is said to be that old."""


@dataclass(frozen=True)
class Remark:
    """What a person should know about where releases come from."""

    message: str
    help: str | None = None
    """The way out."""

    def __str__(self) -> str:
        return f"{self.message}: {self.help}" if self.help else self.message


@dataclass(frozen=True)
class Registry:
    """Every release that an active plugin's engine could run."""

    releases: tuple[Release, ...]
    remarks: tuple[Remark, ...] = ()

    def match(self, text: str) -> list[Release]:
        """The releases a query means, newest first; empty when there is none. Raises UsageError for no query."""
        return query.select(text, self.releases)


def load_registry(
    plugins: Plugins, file: Path | None = None, *, home: Path | None = None, as_published: bool = False
) -> Registry:
    """The releases of the shipped registry (or `file`) and of the plugins' engines, and of what `home` knows besides.

    `as_published`: without the hashes that were seen here when a package was first used.
    Those no engine serves are left out, and those of a signed registry whose signatures have ended. Raises
    RegistryError; what is wrong with a signed registry, or with what was found in a package index, is a remark.
    """
    shipped = read_registry(file or paths.registry_file())
    by_id = {release.id: _come_along(release, SHIPPED) for release in shipped}
    for name, engine in sorted(plugins.engines.items()):
        by_id.update((r.id, _come_along(r, f"engine {name}")) for r in _of_engine(name, engine.releases))
    remarks: list[Remark] = []
    if home is not None:
        _add_signed(by_id, home, remarks)
        _add_found(by_id, home, plugins, remarks)
        if not as_published:
            _pin_by_first_use(by_id, home, remarks)
    served = [release for release in by_id.values() if release.engine in plugins.engines]
    return Registry(tuple(query.by_name_newest_first(served)), tuple(remarks))


def _come_along(release: Release, source: str) -> Release:
    """A release that came with the host or a plugin, and so is old enough for whoever installed that."""
    return replace(release, source=source, published=None)


def _add_signed(by_id: dict[str, Release], home: Path, remarks: list[Remark]) -> None:
    """Add what signed registries bring, and say what of them does not count."""
    from paceline.registry import trust

    now = datetime.now(UTC)
    for registry in trust.trusted(home):
        refresh = f"`paceline registry refresh {registry.name}` asks it again"
        try:
            known = trust.verified(registry)
        except RegistryError as error:
            remarks.append(Remark(error.message, error.help))
            continue
        if known is None:
            remarks.append(Remark(f"nothing of the registry {registry.name} was verified yet", refresh))
            continue
        how_old = f"the registry {registry.name} was verified {trust.age(known.verified_at, now)} ago"
        if known.expired(now):
            remarks.append(Remark(f"{how_old} and has expired, so its releases are left out", refresh))
            continue
        if known.verified_at < now - _FRESH:
            remarks.append(Remark(how_old, refresh))
        for release in known.dated():
            release = replace(release, source=f"registry {registry.name}")
            ours = by_id.setdefault(release.id, release)
            by_id[release.id] = chosen = _with_hashes_of(release, ours)
            if not _same(chosen, release):
                said = f"the registry {registry.name} says otherwise what {release.id} is, and is not followed"
                remarks.append(Remark(said, f"ask its publisher about it: {registry.url}"))


def _add_found(by_id: dict[str, Release], home: Path, plugins: Plugins, remarks: list[Remark]) -> None:
    """Add what was found in package indexes and can still be driven."""
    try:
        found = found_upstream(found_file(home))
    except RegistryError as error:
        remarks.append(Remark(error.message, error.help))
        return
    for release in found:
        if _is_driven(release, plugins):
            by_id.setdefault(release.id, replace(release, source=FOUND))


def _pin_by_first_use(by_id: dict[str, Release], home: Path, remarks: list[Remark]) -> None:
    """Pin packages without published hashes as they were seen here before."""
    from paceline.packages import first_use

    try:
        for release in [r for r in by_id.values() if r.recipe.unpinned]:
            recipe = first_use.pinned(release.recipe, home, [first_use.place(release.requires)])
            by_id[release.id] = replace(release, recipe=recipe)
    except StoreError as error:
        remarks.append(Remark(error.message, error.help))


def _with_hashes_of(theirs: Release, ours: Release) -> Release:
    """Our release, its packages without hashes pinned as theirs are, when it is theirs in everything else."""
    files = {(p.name, p.version, p.index): files_of(p) for p in theirs.recipe.packages}
    pinned = tuple(
        p if p.sha256 else pinned_to(p, files.get((p.name, p.version, p.index), {})) for p in ours.recipe.packages
    )
    filled = replace(ours, recipe=replace(ours.recipe, packages=pinned))
    if filled == ours or not _same(filled, theirs):
        return ours
    return replace(filled, source=f"{ours.source}, hashes of {theirs.source}")


def _same(a: Release, b: Release) -> bool:
    """Whether two releases install the same and need the same."""

    def essence(release: Release) -> tuple[object, ...]:
        recipe = release.recipe
        settings = {name: dict(values) for name, values in recipe.config_settings.items()}
        # Two files with one hash have one size; one of the two may not say it.
        packages = [replace(p, size=()) for p in recipe.packages]
        build_packages = [replace(p, size=()) for p in recipe.build_packages]
        return release.formats, release.requires, packages, build_packages, settings, recipe.prune

    return essence(a) == essence(b)


def found_file(home: Path) -> Path:
    """Where releases that were found in package indexes are remembered."""
    return home / "upstream.json"


def found_upstream(file: Path | None) -> tuple[Release, ...]:
    """The releases that were found in package indexes and written to `file`; none when it does not exist.

    Raises RegistryError for one that is damaged.
    """
    if file is None or not os.path.lexists(file):
        return ()
    return read_registry(file, way_out="`paceline runtime update --check` asks the package index and writes it anew")


def _is_driven(release: Release, plugins: Plugins) -> bool:
    """Whether a release from a package index is still one that its engine's plugin says it can drive."""
    engine = plugins.engines.get(release.engine)
    upstream = None if engine is None else engine.upstream
    try:
        return upstream is None or SpecifierSet(upstream.versions).contains(release.version, prereleases=True)
    except InvalidSpecifier:
        return False


def _of_engine(name: str, releases: Callable[[], Iterable[Release]]) -> list[Release]:
    try:
        found = list(releases())
    except Exception as error:
        raise RegistryError(
            f"engine {name} could not list its releases: {type(error).__name__}: {error}",
            help="set PACELINE_PLUGINS to the plugins to use, without this one, and report it to its author",
        ) from error
    for release in found:
        if not isinstance(release, Release) or release.engine != name:
            raise RegistryError(
                f"engine {name} brought {getattr(release, 'id', release)!r}, which is no release of its own",
                help="set PACELINE_PLUGINS to the plugins to use, without this one, and report it to its author",
            )
    return found
