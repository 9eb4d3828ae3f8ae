"""Packages whose index publishes no hashes: what was seen when they were first installed is required from then on.

`first-use.json` in the home holds, by package, version, index page and Python, sha256 and size of the wheel that was
installed. A recipe with them filled in is pinned like any other: uv refuses another file and names both digests.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from paceline import refusals
from paceline.errors import StoreError
from paceline.packages.locked import pinned_to
from paceline.store import transaction
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from paceline.packages.depot import PackageFile
    from paceline.types import Package, Recipe

SCHEMA_VERSION = 1


def record_file(home: Path) -> Path:
    """Where the hashes that were seen are recorded."""
    return home / "first-use.json"


def pinned(recipe: Recipe, home: Path) -> Recipe:
    """`recipe` with the hashes that were seen here before. Raises StoreError when the record cannot be read."""
    if not recipe.unpinned:
        return recipe
    known = _read(record_file(home))
    found = {p: _files(known[_key(p)]) for p in recipe.unpinned if _key(p) in known}
    return replace(recipe, packages=tuple(pinned_to(p, found[p]) if p in found else p for p in recipe.packages))


def pinned_to_found(recipe: Recipe, found: Mapping[str, PackageFile]) -> Recipe:
    """`recipe` with its packages without a hash pinned to what was `found` of them, by name; the others left out."""
    wanted = [p for p in recipe.packages if p.sha256 or p.name in found]
    packages = tuple(p if p.sha256 else pinned_to(p, {found[p.name].sha256: found[p.name].size}) for p in wanted)
    return replace(recipe, packages=packages)


def record(home: Path, packages: Iterable[Package]) -> None:
    """Require these hashes from now on. Only the holder of the install lock may call it."""
    packages = list(packages)
    if not packages:
        return
    transaction.sweep_unfinished(record_file(home))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = _read(record_file(home))
    known.update((_key(p), {"sha256": p.sha256, "size": p.size, "first_used": now}) for p in packages)
    transaction.write_json(record_file(home), {"schema_version": SCHEMA_VERSION, "packages": known})


def way_out(recipe: Recipe, home: Path) -> str | None:
    """What to do when one of the recorded hashes of `recipe` is not met; None when none is known to be recorded."""
    try:
        known = _read(record_file(home))
    except StoreError:  # there is another error to tell of
        return None
    mine = [(p, known[_key(p)]) for p in recipe.packages if _key(p) in known]
    if not mine:
        return None
    said = ", ".join(f"{p.name} {p.version} ({entry['first_used'][:10]})" for p, entry in mine)
    return (
        f"required is what was first installed here: {said}; should its publisher say that the file was replaced "
        f"on purpose, delete the entry in {record_file(home)}"
    )


def _files(entry: Mapping[str, Any]) -> dict[str, int | None]:
    """By sha256, the sizes; an older Paceline recorded none."""
    return dict(zip(entry["sha256"], entry.get("size") or [None] * len(entry["sha256"]), strict=False))


def _key(package: Package) -> str:
    """The wheels of one version differ by Python and machine, and the home may see another Python one day."""
    python = ".".join(platform.python_version_tuple()[:2])
    return f"{package.name}=={package.version} of {package.index} for Python {python} on {platform.machine()}"


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
