"""Packages whose index publishes no hashes: what was seen when they were first installed is required from then on.

`first-use.json` in the home holds, by package, version, index page, Python and machine, sha256 and size of the wheel
that was installed here, or put into a bundle for there. A recipe with them filled in is pinned like any other: uv
refuses another file and names both digests.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from paceline import refusals
from paceline.errors import InstallError, StoreError
from paceline.packages import python_versions
from paceline.packages.locked import pinned_to
from paceline.store import transaction
from paceline.survey import system
from paceline.types import Requirements
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from paceline.errors import PacelineError
    from paceline.packages.depot import PackageFile
    from paceline.types import Package, Recipe

SCHEMA_VERSION = 1
_ANOTHER_FILE = ("ash mismatch", "sha256", "bytes instead of")


def record_file(home: Path) -> Path:
    """Where the hashes that were seen are recorded."""
    return home / "first-use.json"


def place(requires: Requirements | None = None, python: str | None = None) -> str:
    """How the record names a Python (`3.12`; by default the one here) and the machines of a release; wheels differ."""
    requires, here = requires or Requirements(), (system.os_name().value, system.arch().value)
    there = (requires.os or here[0], requires.arch or here[1])
    machine = platform.machine() if there == here else f"{there[0]} {there[1]}"
    return f"Python {python or python_versions.here()} on {machine}"


def pinned(recipe: Recipe, home: Path, places: Iterable[str] = ()) -> Recipe:
    """`recipe` with the hashes of what was seen before in all of `places`, by default here.

    Raises StoreError when the record cannot be read.
    """
    if not recipe.unpinned:
        return recipe
    known, places = _read(record_file(home)), tuple(places) or (place(),)
    found: dict[Package, dict[str, int | None]] = {}
    for package in recipe.unpinned:
        entries = [known.get(_key(package, each)) for each in places]
        if all(entries):
            found[package] = {sha256: size for entry in entries if entry for sha256, size in _files(entry).items()}
    return replace(recipe, packages=tuple(pinned_to(p, found[p]) if p in found else p for p in recipe.packages))


def pinned_to_found(recipe: Recipe, found: Mapping[str, PackageFile]) -> Recipe:
    """`recipe` with its packages without a hash pinned to what was `found` of them, by name; the others left out."""
    wanted = [p for p in recipe.packages if p.sha256 or p.name in found]
    packages = tuple(p if p.sha256 else pinned_to(p, {found[p.name].sha256: found[p.name].size}) for p in wanted)
    return replace(recipe, packages=packages)


def record(home: Path, packages: Iterable[Package], where: str | None = None) -> None:
    """Require these hashes from now on, but for what is recorded already. `where`: a `place`, by default here.

    Only the holder of the install lock may call it.
    """
    packages, where = list(packages), where or place()
    if not packages:
        return
    transaction.sweep_unfinished(record_file(home))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = _read(record_file(home))
    new = {_key(p, where): {"sha256": p.sha256, "size": p.size, "first_used": now} for p in packages}
    if new.keys() - known.keys():
        transaction.write_json(record_file(home), {"schema_version": SCHEMA_VERSION, "packages": new | known})


def way_out(error: PacelineError, recipe: Recipe, home: Path, where: str | None = None) -> str | None:
    """What to do when one of the recorded hashes of `recipe` is not met; None when that is not what `error` says, or
    none is known to be recorded."""
    if not (isinstance(error, InstallError) and any(words in error.message for words in _ANOTHER_FILE)):
        return None
    where = where or place()
    try:
        known = _read(record_file(home))
    except StoreError:  # there is another error to tell of
        return None
    mine = [(p, entry) for p in recipe.packages if (entry := known.get(_key(p, where)))]
    if not mine:
        return None
    said = ", ".join(f"{p.name} {p.version} ({entry['first_used'][:10]})" for p, entry in mine)
    return (
        f"required is what was first used here: {said}; should its publisher say that the file was replaced "
        f"on purpose, delete the entry in {record_file(home)}"
    )


def _files(entry: Mapping[str, Any]) -> dict[str, int | None]:
    """By sha256, the sizes; an older Paceline recorded none."""
    return dict(zip(entry["sha256"], entry.get("size") or [None] * len(entry["sha256"]), strict=False))


def _key(package: Package, where: str) -> str:
    return f"{package.name}=={package.version} of {package.index} for {where}"


def _read(file: Path) -> dict[str, Any]:
    try:
        data = read_object(file)
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {data['schema_version']!r} is not {SCHEMA_VERSION}")
        for entry in data["packages"].values():
            if not (entry["sha256"] and entry["first_used"]):
                raise ValueError("an entry is empty")
        found: dict[str, Any] = data["packages"]
        return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"the hashes that were seen on first use cannot be read from {file}: {error!r}",
            help=refusals.way_out(error, file) or "mend the file; deleting it accepts whatever is published now",
        ) from None
