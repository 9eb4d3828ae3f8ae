"""What installing from a full cache costs beside uv alone, and what a second runtime adds to the disk."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from uv import find_uv_bin

from paceline import paths, plugins
from paceline.engine import Engine
from paceline.manager.installation import install
from paceline.packages.depot import Depot
from paceline.packages.resolution import Resolver
from paceline.packages.uv import base_interpreter, uv_environment
from paceline.progress import Phase
from paceline.registry import read_registry
from paceline.store import Store
from paceline.store.manifest import FILES, python_of
from paceline.types import Release


class Clock:
    """Wall and processor time of what runs in its block, with the processes that ended there."""

    wall_s = 0.0
    cpu_s = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), _cpu_s()
        try:
            yield
        finally:
            self.wall_s, self.cpu_s = time.perf_counter() - wall, _cpu_s() - cpu

    @property
    def times(self) -> dict[str, float]:
        return {"wall_s": self.wall_s, "cpu_s": self.cpu_s}


def beside_uv(name: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Installations of the release called `name`, each followed by uv alone doing the same; the first compiles.

    The cache has uv's wheels and, before the first, no byte code. uv alone makes an environment and syncs the same lock
    into it, once with byte code, as Paceline leaves it, and once without. `smoke_test` is a part of `paceline`.
    """
    engine, release = _engine_and_release(name)
    cache = _cache_without_byte_code(folder / "cache")
    found: list[dict[str, Any]] = []
    kept: list[Path] = []
    for n in range(rounds + 1):
        store, smoke = Store(folder / f"home{n}"), Part("starting")
        ours = Clock()
        with ours.running():
            made = install(release, store, engine, smoke, cache=cache)
        measured = {"paceline": ours.times, "smoke_test": smoke.clock.times}
        for what, options in {"uv": ["--compile-bytecode"], "uv_without_byte_code": []}.items():
            alone, clock = folder / "alone", Clock()
            with clock.running():
                _uv_alone(alone, made.directory, release, [*options, "--cache-dir", str(cache / "uv")])
            shutil.rmtree(alone)
            measured[what] = clock.times
        found.append(measured)
        kept.append(made.directory)
        if n > 1:
            shutil.rmtree(store.home)
    first, second = added_bytes(kept[:2])
    return {
        "release": release.id,
        "first": found[0],
        "rounds": found[1:],
        "disk_bytes": {"first": first, "second": second},
    }


def second_version(name: str, package: str, folder: Path) -> dict[str, Any]:
    """What a release adds to the disk beside the same one with the version of `package` before its own.

    `added` counts the runtime; `added_with_cache` also the cache, an empty one at first, so that both are fetched.
    `differing_files`: the room that the files take which no file of the first equals. `linking_s`: what
    linking the others took. Raises PacelineError where the package index has no older version.
    """
    engine, release = _engine_and_release(name)
    older = _older(release, package)
    cache, store, linking = folder / "cache", Store(folder / "home"), Part("linking")
    made = [install(older, store, engine, cache=cache).directory]
    before = sum(added_bytes([cache, store.folder]))
    made.append(install(release, store, engine, linking, cache=cache).directory)
    before_it, files = (json.loads((each / FILES).read_text(encoding="utf-8")) for each in made)
    known = {entry.get("sha256") for entry in before_it.values()} | {None}
    differing = [made[1] / path for path, entry in files.items() if entry.get("sha256") not in known]
    return {
        "first": older.id,
        "second": release.id,
        "added": added_bytes(made)[1],
        "added_with_cache": sum(added_bytes([cache, store.folder])) - before,
        "differing_files": sum(path.stat().st_blocks * 512 for path in differing),
        "linking_s": linking.clock.wall_s,
    }


def _older(release: Release, package: str) -> Release:
    python = ".".join(platform.python_version_tuple()[:2])
    resolver = Resolver(release.requires, [python], cache=paths.cache() / "resolution")
    now = {p.name: p.version for p in release.recipe.packages}
    packages = resolver.packages(release.recipe, [*release.recipe.roots, f"{package}<{now[package]}"])
    version = next(p.version for p in packages if p.name == package)
    version = f"{release.version}+{package}.{version}"
    return replace(release, version=version, recipe=replace(release.recipe, packages=packages))


def added_bytes(folders: list[Path]) -> list[int]:
    """By folder, the bytes on the disk of its files that are in none before it; a file with two names is one."""
    known: set[tuple[int, int]] = set()
    added = []
    for folder in folders:
        status = [p.lstat() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
        new = {(s.st_dev, s.st_ino): s.st_blocks * 512 for s in status if (s.st_dev, s.st_ino) not in known}
        known |= new.keys()
        added.append(sum(new.values()))
    return added


def ratio(rounds: Sequence[Mapping[str, Any]], unit: str) -> tuple[float, float, float]:
    """Median, smallest and largest of our time over that of uv alone, of each round."""
    ratios = [r["paceline"][unit] / r["uv"][unit] for r in rounds]
    return median(ratios), min(ratios), max(ratios)


class Part:
    """Times the part of an installation whose message begins with a word, as its Progress."""

    def __init__(self, begins: str) -> None:
        self.clock = Clock()
        self._begins = begins
        self._began: tuple[float, float] | None = None

    def __call__(self, phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
        if phase is Phase.CHECK and message.startswith(self._begins):
            self._began = time.perf_counter(), _cpu_s()
        elif self._began is not None:
            wall, cpu = self._began
            self.clock.wall_s, self.clock.cpu_s = time.perf_counter() - wall, _cpu_s() - cpu
            self._began = None


def _engine_and_release(name: str) -> tuple[Engine, Release]:
    release = next(r for r in read_registry(paths.registry_file()) if r.name == name)
    return plugins.load().engine(release.engine), release


def _cache_without_byte_code(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for part in ("uv", "packages"):  # uv knows what it built under the address of the index that had its source
        (folder / part).symlink_to(paths.cache() / part)
    if (noted := paths.cache() / "built-for.json").exists():
        shutil.copy(noted, folder)
    return folder


def _uv_alone(environment: Path, made: Path, release: Release, options: list[str]) -> None:
    settings = [
        f"--config-settings-package={name}:{key}={value}"
        for name, values in release.recipe.config_settings.items()
        for key, value in values.items()
    ]
    lock = ["pip", "sync", str(made / "requirements.txt"), "--python", str(python_of(environment)), "--require-hashes"]
    empty = ["venv", "--no-project", "--python", base_interpreter(), str(environment)]
    index = Depot(paths.cache()).index  # what Paceline fetched itself, uv knows under this address
    known = ["--index", index, "--index-strategy", "unsafe-best-match"] if index else []
    for arguments in (empty, [*lock, "--offline", *known, *settings, *options]):
        subprocess.run([find_uv_bin(), "-q", *arguments], env=uv_environment(os.environ), cwd=made, check=True)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
