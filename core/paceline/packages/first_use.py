"""Packages whose index publishes no hashes: what was seen when they were first installed is required from then on.

`first-use.json` in the home holds, by package, version, index page and Python, the sha256 of the wheel that was
installed. A recipe with them filled in is pinned like any other: uv refuses another file and names both digests.
"""

from __future__ import annotations

import os
import platform
import tempfile
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline import child, refusals
from paceline.errors import BuildError, StoreError
from paceline.store import transaction
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paceline.types import Package, Recipe

SCHEMA_VERSION = 1
_TOLD = 12


def record_file(home: Path) -> Path:
    """Where the hashes that were seen are recorded."""
    return home / "first-use.json"


def pinned(recipe: Recipe, home: Path) -> Recipe:
    """`recipe` with the hashes that were seen here before. Raises StoreError when the record cannot be read."""
    if not recipe.unpinned:
        return recipe
    known = _read(record_file(home))
    packages = tuple(
        replace(p, sha256=tuple(known[_key(p)]["sha256"])) if not p.sha256 and _key(p) in known else p
        for p in recipe.packages
    )
    return replace(recipe, packages=packages)


def look(recipe: Recipe, *, cache: Path) -> Recipe:
    """`recipe` with the hash of what its index pages have now for each package without one.

    The wheels are fetched into the cache that runtimes are installed from. Raises BuildError with uv's reason.
    """
    found = {package.name: _seen(package, cache) for package in recipe.unpinned}
    packages = tuple(p if p.sha256 else replace(p, sha256=found[p.name]) for p in recipe.packages)
    return replace(recipe, packages=packages)


def record(home: Path, packages: Iterable[Package]) -> None:
    """Require these hashes from now on. Only the holder of the install lock may call it."""
    packages = list(packages)
    if not packages:
        return
    transaction.sweep_unfinished(record_file(home))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = _read(record_file(home))
    known.update((_key(p), {"sha256": list(p.sha256), "first_used": now}) for p in packages)
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


def _seen(package: Package, cache: Path) -> tuple[str, ...]:
    from paceline.packages.uv import base_interpreter, uv_command, uv_environment

    lines: list[str] = []
    transaction.step("run uv", cache)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "roots.in").write_text(f"{package.name}=={package.version}\n", encoding="utf-8")
        command: list[str | Path] = ["pip", "compile", "roots.in", "--no-deps", "--no-header", "-q"]
        command += ["--index", package.index or "", "--only-binary", package.name]
        command += ["--python", base_interpreter(), "--no-python-downloads", "--cache-dir", cache / "uv"]
        command += ["--format", "pylock.toml", "--output-file", "pylock.toml"]
        environment = uv_environment(os.environ, pinned=False)
        if child.run(uv_command(command, environment), env=environment, cwd=folder, on_line=lines.append):
            said = "".join(lines[-_TOLD:]).strip()
            raise BuildError(f"{package.name} {package.version} cannot be fetched from {package.index}: {said}")
        entries = tomllib.loads((folder / "pylock.toml").read_text(encoding="utf-8"))["packages"]
    wheels = [wheel for entry in entries for wheel in entry.get("wheels", [])]
    hashes = {wheel["hashes"]["sha256"] for wheel in wheels if "sha256" in wheel.get("hashes", {})}
    if not hashes:
        raise BuildError(f"{package.index} has no wheel of {package.name} {package.version} for this Python")
    return tuple(sorted(hashes))
