"""The packages of a lock: which of them a Python needs, and how much there is to fetch."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from packaging.markers import Marker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paceline.types import Package, Recipe


def applies(package: Package, python: str | None = None) -> bool:
    """Whether a package is for Python `python` ("3.12"); by default for the one that runtimes are built on here."""
    here = {"python_version": python, "python_full_version": f"{python}.0"} if python else None
    return package.marker is None or Marker(package.marker).evaluate(here)


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
