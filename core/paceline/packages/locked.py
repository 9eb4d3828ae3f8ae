"""The packages of a lock: which of them a Python needs, and how much there is to fetch."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from packaging.markers import Marker
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from paceline.types import Package, Recipe


def applies(package: Package, python: str | None = None) -> bool:
    """Whether a package is for Python `python` ("3.12"); by default for the one that runtimes are built on here."""
    here = {"python_version": python, "python_full_version": f"{python}.0"} if python else None
    return package.marker is None or Marker(package.marker).evaluate(here)


def joined(locks: Mapping[str, Iterable[Package]]) -> tuple[Package, ...]:
    """One lock of those for each Python ("3.12"); a version of a package that only some take gets a marker."""
    pythons = sorted(locks, key=Version)
    found: dict[tuple[str, str], Package] = {}
    users: dict[tuple[str, str], list[str]] = {}
    for python in pythons:
        for package in locks[python]:
            key = (package.name, package.version)
            before = found.get(key)
            found[key] = pinned_to(package, files_of(package) | (files_of(before) if before else {}))
            users.setdefault(key, []).append(python)
    ordered = sorted(found, key=lambda key: (key[0], Version(key[1])))
    return tuple(replace(found[key], marker=_marker(users[key], pythons)) for key in ordered)


def pinned_to(package: Package, files: Mapping[str, int | None]) -> Package:
    """`package` pinned to `files`: by sha256, the size in bytes, as far as it is known."""
    hashes = sorted(files)
    sizes = [size for size in map(files.__getitem__, hashes) if size is not None]
    return replace(package, sha256=tuple(hashes), size=tuple(sizes) if len(sizes) == len(hashes) else ())


def files_of(package: Package) -> dict[str, int | None]:
    """By sha256, the size in bytes of each file that a package is pinned to; None where it is not known."""
    sizes = package.size or (None,) * len(package.sha256)
    return dict(zip(package.sha256, sizes, strict=True))


def fetched_here(recipe: Recipe) -> list[Package]:
    """What installing `recipe` here may fetch; a package that is needed twice comes once."""
    wanted = [p for p in recipe.packages if applies(p) and not p.file]
    if any(p.source for p in wanted):
        wanted += [p for p in recipe.build_packages if applies(p)]
    return list({(p.name, p.version): p for p in wanted}.values())


def download_bytes(recipe: Recipe, told: Mapping[str, int] = MappingProxyType({})) -> int | None:
    """The most that installing `recipe` here fetches; None when not every size is known.

    Of each package it is one file. Which one, uv finds out; the largest is counted. `told`: by name, what an index says
    of packages whose lock says no size.
    """
    sizes = [max(p.size, default=told.get(p.name)) for p in fetched_here(recipe)]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _marker(users: Sequence[str], pythons: Sequence[str]) -> str | None:
    if users == pythons:
        return None
    if users == pythons[: len(users)]:
        return f"python_version <= '{users[-1]}'"
    if users == pythons[-len(users) :]:
        return f"python_version >= '{users[0]}'"
    return " or ".join(f"python_version == '{python}'" for python in users)
