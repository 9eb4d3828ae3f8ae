"""The catalogue of releases: the shipped registry.json, what was found upstream, and what the engines bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline import paths, query
from paceline.errors import RegistryError
from paceline.registry.reading import read_registry
from paceline.registry.writing import registry_text, registry_value
from paceline.types import Release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from paceline.plugins import Plugins

__all__ = ["Registry", "found_upstream", "load_registry", "read_registry", "registry_text", "registry_value"]


@dataclass(frozen=True)
class Registry:
    """Every release that an active plugin's engine could run."""

    releases: tuple[Release, ...]

    def match(self, text: str) -> list[Release]:
        """The releases a query means, newest first; empty when there is none. Raises UsageError for no query."""
        return query.select(text, self.releases)


def load_registry(plugins: Plugins, file: Path | None = None, *, found: Path | None = None) -> Registry:
    """The releases of the shipped registry (or `file`), of `found` if that exists, and of the plugins' engines.

    Those no engine serves are left out. Of releases with one id, an engine's own counts first, then the shipped one.
    Raises RegistryError.
    """
    releases = (*found_upstream(found), *read_registry(file or paths.registry_file()))
    by_id = {release.id: release for release in releases}
    for name, engine in sorted(plugins.engines.items()):
        by_id.update((release.id, release) for release in _of_engine(name, engine.releases))
    return Registry(tuple(query.by_name_newest_first(r for r in by_id.values() if r.engine in plugins.engines)))


def found_upstream(file: Path | None) -> tuple[Release, ...]:
    """The releases that were found in package indexes and written to `file`; none when it does not exist."""
    if file is None or not file.exists():
        return ()
    return read_registry(file, way_out=f"delete {file}: `paceline runtime update --check` makes it again")


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
