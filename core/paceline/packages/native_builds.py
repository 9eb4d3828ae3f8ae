"""Which processor the wheels in the cache were built for.

A package that is compiled here may use every instruction of the processor it is compiled on, and uv keeps its wheel
under a name that says nothing of that. `<cache>/built-for.json` says it, so that a cache which moved to a lesser
processor, or which several machines share, gives nobody a wheel with instructions he lacks.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from paceline import processor
from paceline.errors import StoreError
from paceline.store import transaction
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from paceline.types import Package, Recipe

_FILE = "built-for.json"


def foreign(cache: Path, recipe: Recipe) -> list[str]:
    """Packages of `recipe` whose cached builds need what this processor lacks."""
    here = processor.features()
    if here is None:
        return []
    known = _read(cache)
    return [p.name for p in recipe.packages if p.source and not here.issuperset(known.get(_key(p), ()))]


def note(cache: Path, recipe: Recipe, built: Iterable[str]) -> None:
    """Remember that the packages called `built` were compiled on this processor just now."""
    here, built = processor.features(), set(built)
    new = {_key(p): processor.instruction_sets(here) for p in recipe.packages if here and p.source and p.name in built}
    if new:
        with suppress(OSError, StoreError):
            transaction.write_json(cache / _FILE, {**_read(cache), **new})


def needed(cache: Path, recipe: Recipe, environment: Path) -> tuple[str, ...]:
    """The instruction sets that what was compiled for `environment` may use; what nobody noted, all that are here."""
    here, known = processor.features(), _read(cache)
    compiled = [p for p in recipe.packages if p.source and _is_native(environment, p)]
    if here is None or not compiled:
        return ()
    return tuple(sorted({f for p in compiled for f in known.get(_key(p), processor.instruction_sets(here))}))


def _is_native(environment: Path, package: Package) -> bool:
    name = package.name.replace("-", "_")
    for folder in (*environment.glob("lib/python*/site-packages"), *environment.glob("Lib/site-packages")):
        for wheel in folder.glob(f"{name}-*.dist-info/WHEEL"):
            with suppress(OSError):
                return "root-is-purelib: true" not in wheel.read_text("utf-8", "replace").lower()
    return False


def _key(package: Package) -> str:
    return f"{package.name}=={package.version}"


def _read(cache: Path) -> dict[str, list[str]]:
    try:
        data = read_object(cache / _FILE)
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in data.items() if isinstance(v, list) and all(isinstance(f, str) for f in v)}
