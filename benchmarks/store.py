"""How fast the store of installed runtimes answers, and what a second version of an engine adds to the disk.

python benchmarks/store.py [--runs 20] [--like HOME] [--release llama.cpp-linux-x86_64-cpu]

Runtimes are made, not installed: each has as many files as the largest runtime in HOME (or 1,000), and as many of them
programs and shared libraries.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from uv import find_uv_bin

from machine import describe_machine
from paceline.packages.environment import make_environment
from paceline.packages.indexes import Indexes
from paceline.packages.uv import base_interpreter, uv_environment
from paceline.paths import cache
from paceline.progress import silent
from paceline.registry import read_registry
from paceline.store import Store, health
from paceline.store.manifest import FILES, MANIFEST, python_of
from paceline.types import Release, Runtime
from report import percentile

LISTED, CHECKED = 50, 10


def make_runtime(store: Store, version: str, files: int, libraries: int) -> Runtime:
    """Publish a whole runtime of small files."""
    staged = store.staging / version
    (staged / "env" / "bin").mkdir(parents=True)
    (staged / "env" / "bin" / "python").symlink_to(sys.executable)
    for n in range(files):
        name = f"lib{n}.so" if n < libraries else f"module{n}.py"
        (staged / "env" / f"package{n // 50}").mkdir(exist_ok=True)
        (staged / "env" / f"package{n // 50}" / name).write_text(f"{n}")
    described = health.describe_files(staged)
    (staged / FILES).write_text(json.dumps(described))
    manifest = {
        "schema_version": 1,
        "engine": "engine",
        "version": version,
        "platform": "any",
        "formats": ["gguf"],
        "features": [],
        "size_bytes": sum(entry.get("size", 0) for entry in described.values()),
        "python": health.base_python(sys.executable),
        "libc": health.libc(),
        "files_sha256": hashlib.sha256((staged / FILES).read_bytes()).hexdigest(),
        "quick_check": health.quick_part(described),
    }
    (staged / MANIFEST).write_text(json.dumps(manifest))
    return store.publish(staged, f"engine-any@{version}")


def timed(action: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each run, after one that does not count."""
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return times[1:]


def shape_of(home: Path | None) -> tuple[int, int]:
    """Files, and programs and shared libraries among them, of the largest runtime in `home`."""
    shapes = [(1000, 60)]
    if home is not None:
        found = [json.loads((r.directory / FILES).read_bytes()) for r in Store(home).runtimes()]
        shapes = [(len(files), len(health.quick_part(files))) for files in found] or shapes
    return max(shapes)


def added_by_a_second_version(folder: Path, name: str) -> tuple[int, int]:
    """Bytes of an environment of the release called `name`, and how many a second one adds to the disk."""
    release = next(r for r in read_registry(Path(__file__).parents[1] / "registry.json") if r.name == name)
    for n in ("first", "second"):
        (folder / n).mkdir(parents=True)
        make_environment(folder / n, release.recipe, cache=cache(), supply=Indexes(cache()), progress=silent)
    known: set[int] = set()
    sizes = []
    for n in ("first", "second"):
        status = [p.lstat() for p in (folder / n).rglob("*") if p.is_file()]
        new = {s.st_ino: s.st_size for s in status if s.st_ino not in known}
        known |= set(new)
        sizes.append(sum(new.values()))
    return sizes[0], sizes[1]


def beside_bare_uv(folder: Path, name: str, runs: int) -> tuple[list[float], list[float]]:
    """Seconds to make the environment of the release called `name` from a full cache: ours, and by uv alone.

    uv alone makes an empty environment and syncs the same lock into it, with the same cache, byte code and hashes.
    One after the other, in turns, so that both meet the same machine.
    """
    release = next(r for r in read_registry(Path(__file__).parents[1] / "registry.json") if r.name == name)
    environment = uv_environment(os.environ)
    ours, bare = [], []
    for n in range(runs + 1):
        made = folder / f"ours{n}"
        made.mkdir(parents=True)
        started = time.perf_counter()
        make_environment(made, release.recipe, cache=cache(), supply=Indexes(cache()), progress=silent)
        ours.append(time.perf_counter() - started)
        alone = folder / f"bare{n}"
        sync: list[str | Path] = [
            "pip",
            "sync",
            made / "requirements.txt",
            "--python",
            python_of(alone),
            "--require-hashes",
        ]
        sync += ["--compile-bytecode", "--offline", "--cache-dir", cache() / "uv", *settings_of(release)]
        started = time.perf_counter()
        empty: list[str | Path] = ["venv", "--no-project", "--python", base_interpreter(), alone]
        for arguments in (empty, sync):
            subprocess.run([find_uv_bin(), "-q", *arguments], env=environment, check=True)
        bare.append(time.perf_counter() - started)
    return ours[1:], bare[1:]


def settings_of(release: Release) -> list[str]:
    """The settings of builds, by which uv finds what it built."""
    settings = release.recipe.config_settings.items()
    return [f"--config-settings-package={name}:{k}={v}" for name, values in settings for k, v in values.items()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the store of installed runtimes.")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--like", type=Path, metavar="HOME", help="Take the number of files from a real home.")
    parser.add_argument("--release", metavar="NAME", help="Also weigh and time environments of this release.")
    options = parser.parse_args(argv)
    for name, value in describe_machine().items():
        print(f"- {name}: {value}")
    files, libraries = shape_of(options.like)
    print(f"- a runtime here: {files} files, {libraries} of them programs and libraries")
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "home")
        runtimes = [make_runtime(store, f"{n}.0", files, libraries) for n in range(1, LISTED + 1)]
        command = [sys.executable, "-m", "paceline", "runtime", "ls"]
        environment = {**os.environ, "PACELINE_HOME": str(store.home)}
        pair = runtimes[:2]
        for runtime in pair:
            store.note_loaded(runtime, "gguf")
        store.select(pair[0])

        def select_and_return() -> None:
            store.select(pair[1])
            store.rollback("gguf")

        def list_all() -> None:
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)

        def check(how: Callable[[Path], health.Health]) -> Callable[[], object]:
            return lambda: [how(runtime.directory) for runtime in runtimes[:CHECKED]]

        print("\n| what | median ms | p95 ms | fastest ms |\n| --- | --- | --- | --- |")
        for what, action in {
            f"`runtime ls` with {LISTED} runtimes, the whole process": list_all,
            "a selection and its rollback": select_and_return,
            f"quick check of {CHECKED} runtimes": check(health.quick),
            f"glance at {CHECKED} runtimes": check(health.glance),
            f"full check of {CHECKED} runtimes": check(health.full),
        }.items():
            times = timed(action, options.runs)
            figures = (statistics.median(times), percentile(times, 0.95), min(times))
            print(f"| {what} | {' | '.join(f'{t * 1e3:.1f}' for t in figures)} |", flush=True)
        if options.release:
            first, second = added_by_a_second_version(Path(folder) / "weighed", options.release)
            print(f"\n{options.release}: {first / 1e6:.1f} MB, and {second / 1e6:.1f} MB more for a second one")
            ours, bare = beside_bare_uv(Path(folder) / "timed", options.release, options.runs)
            ratios = [a / b for a, b in zip(ours, bare, strict=True)]
            print(
                f"its environment from a full cache: {statistics.median(ours):.2f} s, by uv alone "
                f"{statistics.median(bare):.2f} s; ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f}, {options.runs} pairs)"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
