"""What an installation would do, decided from what is already known. Pure: no file, no process, no network."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from paceline.packages.locked import download_bytes
from paceline.types import Package

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from paceline.store import Selection
    from paceline.types import Release


@dataclass(frozen=True)
class InstallPlan:
    """The steps of one installation, in words a person can check before anything happens."""

    release: str
    directory: Path
    already_installed: bool
    """And whole, as far as a quick check tells: nothing is done then."""
    broken: bool
    """Whether it is installed and broken: it is made again, and takes the place of what is there."""
    packages: tuple[Package, ...]
    build_packages: tuple[Package, ...]
    built: tuple[str, ...]
    """Packages that are compiled here."""
    expected_build_s: float | None
    download_bytes: int | None
    """The most that is fetched, were nothing of it here; None when not every size is known."""
    unpinned: tuple[str, ...]
    """Packages whose files cannot be checked, because their index publishes no hashes."""
    selects: tuple[str, ...]
    """Formats the runtime will be selected for, because they have none."""
    notes: str
    """What its registry says of the release; empty where it says nothing."""


def make_plan(
    release: Release,
    home: Path,
    installed: Collection[str],
    selection: Selection,
    *,
    broken: bool = False,
    build_s: float | None = None,
    cores: int | None = None,
    told: Mapping[str, int] = MappingProxyType({}),
) -> InstallPlan:
    """Plan the installation of `release` where the runtimes `installed` (ids) and `selection` are already there.

    `broken`: whether `release` itself is, where it is installed. `build_s`: how long building another version of it
    took here. `cores`: how many processors this machine has, to estimate from what the recipe says where nothing was
    built yet. `told`: see `locked.download_bytes`.
    """
    recipe = release.recipe
    return InstallPlan(
        release=release.id,
        directory=home / "runtimes" / release.id,
        already_installed=release.id in installed and not broken,
        broken=release.id in installed and broken,
        packages=recipe.packages,
        build_packages=recipe.build_packages,
        built=tuple(p.name for p in recipe.packages if p.source),
        expected_build_s=build_s if build_s is not None else _scaled(recipe.expected_build_s, cores),
        download_bytes=download_bytes(recipe, told),
        unpinned=tuple(p.name for p in recipe.unpinned),
        selects=()
        if release.id in selection.holds
        else tuple(f for f in release.formats if selection.formats.get(f) not in installed),
        notes=release.notes,
    )


RECORDED_CORES = 2
"""How many processors the machine had on which the recipes' build times were measured."""
_LEAST_SHARE = 0.15
"""Of the recorded time, which no number of processors saves: configuring, the largest files, linking."""


def _scaled(recorded_s: float | None, cores: int | None) -> float | None:
    if recorded_s is None or cores is None:
        return recorded_s
    return recorded_s * max(_LEAST_SHARE, RECORDED_CORES / cores)
