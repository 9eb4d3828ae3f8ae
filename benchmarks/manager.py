"""What the runtime manager costs: its commands, the store, installing, and the start of the server.

python benchmarks/manager.py [--rounds 15] [--json FILE] [--releases NAME ...]

Listed runtimes are made, not installed: each has as many files as one of llama.cpp, and as many of them programs and
shared libraries. Installations are of releases whose packages the cache holds ready; nothing is fetched. What is
compared is measured in turns, so that all of it meets the same machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import installs
from machine import OtherWork, describe_machine
from paceline import paths
from paceline.errors import PacelineError
from paceline.manager import inventory
from paceline.store import Store, health
from paceline.store.manifest import FILES, MANIFEST
from paceline.survey import take_survey
from paceline.types import Runtime
from report import percentile

LISTED, CHECKED = 50, 10
FILES_EACH, NATIVE_EACH = 1760, 70
"""Of a runtime of llama.cpp for Linux's CPU."""
RELEASES = ("llama.cpp-linux-x86_64-cpu", "mlx-linux-x86_64-cpu")
SECOND_VERSIONS = {"mlx-linux-x86_64-cpu": "mlx"}
"""Releases of which nothing is compiled, and a package of each that has older versions."""
BARS_S = {
    f"`runtime ls`, {LISTED} runtimes": 0.3,
    "`--help`": 0.3,
    "`runtime select`": 0.05,
    "`runtime rollback`": 0.05,
    "selecting": 0.05,
    "rolling back": 0.05,
    f"quick check of {CHECKED} runtimes, as at the start": 0.05,
}
"""What a median may take at most."""
RATIO_BAR = 1.3
"""What an installation may take of what uv alone takes."""

Times = dict[str, list[float]]
"""Seconds of each run: `wall_s` and `cpu_s`."""


def measure(rounds: int, releases: Sequence[str], folder: Path, *, online: bool = False) -> dict[str, Any]:
    """Every figure. `folder` has to be on the file system of the cache, or nothing could be linked. `online`: install
    older packages from the index, too, for what a second version adds."""
    os.environ["PACELINE_OFFLINE"] = "1"
    others = OtherWork()
    store = Store(folder / "home")
    runtimes = [make_runtime(store, f"{n}.0", FILES_EACH, NATIVE_EACH) for n in range(1, LISTED + 1)]
    for runtime in runtimes[:2]:
        store.note_loaded(runtime, "gguf")
    store.select(runtimes[0])
    figures = {
        "measures": "manager",
        "machine": describe_machine(),
        "rounds": rounds,
        "operations": operations(store, runtimes, rounds, folder / "cache"),
        "commands": commands(store, runtimes, rounds, folder / "cache"),
        "server": server(store.home, folder, max(1, rounds // 3)),
        "installs": list(_installs(releases, max(2, rounds // 5), folder)),
        "second_versions": list(_second_versions(releases, folder)) if online else [],
    }
    return {**figures, "other_cores": others.cores()}


def operations(store: Store, runtimes: Sequence[Runtime], rounds: int, cache: Path) -> dict[str, Times]:
    """What happens inside one process that runs already, such as the server."""

    def check(how: Callable[[Path], health.Health]) -> Callable[[], object]:
        return lambda: [how(runtime.directory) for runtime in runtimes[:CHECKED]]

    actions: dict[str, Callable[[], object]] = {
        "selecting": lambda: store.select(runtimes[1]),
        "rolling back": lambda: store.rollback("gguf"),
        f"quick check of {CHECKED} runtimes, as at the start": check(health.quick),
        f"full check of {CHECKED} runtimes": check(health.full),
        f"describing {LISTED} runtimes": lambda: [
            inventory.describe_runtime(r, store, store.selection()) for r in store.runtimes()
        ],
        "survey, remembered": lambda: take_survey(cache=cache),
        "survey, everything asked": lambda: take_survey(),
    }

    def run(action: Callable[[], object]) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        return time.perf_counter() - wall, time.process_time() - cpu

    return _in_turns(actions, run, rounds)


def commands(store: Store, runtimes: Sequence[Runtime], rounds: int, cache: Path) -> dict[str, Times]:
    """Whole processes, from their start to their end."""
    paceline = ["-m", "paceline"]
    lines = {
        "Python alone": ["-c", "pass"],
        "`--help`": [*paceline, "--help"],
        f"`runtime ls`, {LISTED} runtimes": [*paceline, "runtime", "ls"],
        "`runtime select`": [*paceline, "runtime", "select", runtimes[1].id],
        "`runtime rollback`": [*paceline, "runtime", "rollback"],
        "`runtime survey`": [*paceline, "runtime", "survey"],
        "`runtime survey --refresh`": [*paceline, "runtime", "survey", "--refresh"],
        "`runtime get --list`": [*paceline, "runtime", "get", "--list"],
        "`runtime update --check`, offline": [*paceline, "--offline", "runtime", "update", "--check"],
        "`ls`": [*paceline, "ls"],
    }
    environment = {**_environment(store.home), "PACELINE_CACHE": str(cache)}

    def run(arguments: list[str]) -> tuple[float, float]:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != (1 if "--offline" in arguments else 0):  # it says that the index was not asked
            raise PacelineError(f"{' '.join(arguments)} ended with status {process.returncode}")
        return time.perf_counter() - started, used.ru_utime + used.ru_stime

    return _in_turns(lines, run, rounds)


def server(home: Path, folder: Path, rounds: int) -> dict[str, Times]:
    """From the start of `paceline serve` to its first answer, without anything remembered and with it."""
    found: dict[str, Times] = {}
    for n in range(rounds):
        cache = folder / f"server{n}"
        for what in ("nothing remembered", "all remembered"):
            wall, cpu = _start_and_ask({**_environment(home), "PACELINE_CACHE": str(cache)})
            times = found.setdefault(f"`serve` to its first answer, {what}", {"wall_s": [], "cpu_s": []})
            times["wall_s"].append(wall)
            times["cpu_s"].append(cpu)
    return found


def tables(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"{LISTED} runtimes of {FILES_EACH} files each, {figures['rounds']} rounds, each with everything once. "
        f"Others kept {figures['other_cores']:.2f} cores busy meanwhile.",
        "",
        "| what | median ms | fastest ms | p95 ms | processor ms | at most ms | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, name in (("commands", "process"), ("server", "process"), ("operations", "operation")):
        lines += [_line(name, what, times) for what, times in figures[kind].items()]
    if figures["installs"]:
        lines += ["", *_install_tables(figures["installs"])]
    if figures.get("second_versions"):
        lines += ["", *_second_tables(figures["second_versions"])]
    return "\n".join(lines) + "\n"


def read(path: Path) -> dict[str, Any]:
    """What an earlier sitting has measured."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _line(name: str, what: str, times: Times) -> str:
    wall, bar = times["wall_s"], BARS_S.get(what)
    shown = [statistics.median(wall), min(wall), percentile(wall, 0.95), statistics.median(times["cpu_s"])]
    told = "" if bar is None else f"{bar * 1e3:.0f}"
    verdict = "" if bar is None else _verdict(shown[0], bar)
    return f"| {name}: {what} | {' | '.join(f'{t * 1e3:.1f}' for t in shown)} | {told} | {verdict} |"


def _verdict(found: float, bar: float) -> str:
    return "held" if found <= bar else "**missed**"


def _install_tables(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"Installing what the cache holds, over uv alone (`uv venv` and `uv pip sync --compile-bytecode` of the same "
        f"lock); at most {RATIO_BAR}. Ratios are medians of the rounds' own, with the smallest and the largest; the "
        f"smoke test is included.",
        "",
        "| release | paceline s | of it the smoke test s | uv alone s | ratio | verdict | of processor time | "
        "uv leaving byte code to the first start s | over that | the first, which compiles s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        seconds = {
            what: statistics.median(r[what]["wall_s"] for r in one["rounds"])
            for what in ("paceline", "smoke_test", "uv", "uv_without_byte_code")
        }
        whole = installs.ratio(one["rounds"], "wall_s")
        cells = [
            one["release"],
            *(f"{seconds[what]:.2f}" for what in ("paceline", "smoke_test", "uv")),
            _ratio(whole),
            _verdict(whole[0], RATIO_BAR),
            _ratio(installs.ratio(one["rounds"], "cpu_s")),
            f"{seconds['uv_without_byte_code']:.2f}",
            f"{seconds['paceline'] / seconds['uv_without_byte_code']:.1f}",
            f"{one['first']['paceline']['wall_s']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| release | MB on the disk | MB that the same once more adds |", "| --- | --- | --- |"]
    for one in found:
        disk = one["disk_bytes"]
        lines.append(f"| {one['release']} | {disk['first'] / 1e6:.1f} | {disk['second'] / 1e6:.1f} |")
    return lines


def _second_tables(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figures of earlier sittings lack what was not measured then."""
    lines = [
        "| installed | then | MB that it adds | with the cache, MB | MB of files that differ | linking the others s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in found:
        size = [f"{one[what] / 1e6:.1f}" if what in one else "" for what in ("added", "added_with_cache")]
        took = f"{one['linking_s']:.2f}" if "linking_s" in one else ""
        size += [f"{one['differing_files'] / 1e6:.1f}", took]
        lines.append(f"| {one['first']} | {one['second']} | {' | '.join(size)} |")
    return lines


def _ratio(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def _installs(releases: Sequence[str], rounds: int, folder: Path) -> list[dict[str, Any]]:
    found = []
    for name in releases:
        try:
            found.append(installs.beside_uv(name, folder / name, rounds))
        except PacelineError as error:
            print(f"note: {name} is left out: {error.message.splitlines()[0]}", file=sys.stderr)
    return found


def _second_versions(releases: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    del os.environ["PACELINE_OFFLINE"]
    for name in (name for name in releases if name in SECOND_VERSIONS):
        try:
            yield installs.second_version(name, SECOND_VERSIONS[name], folder / "second" / name)
        except PacelineError as error:
            print(f"note: {name} is left out: {error.message.splitlines()[0]}", file=sys.stderr)


def _in_turns(actions: Mapping[str, Any], run: Callable[[Any], tuple[float, float]], rounds: int) -> dict[str, Times]:
    """Run everything once for each round, after one round that does not count."""
    found: dict[str, Times] = {what: {"wall_s": [], "cpu_s": []} for what in actions}
    for n in range(rounds + 1):
        for what, action in actions.items():
            wall, cpu = run(action)
            if n:
                found[what]["wall_s"].append(wall)
                found[what]["cpu_s"].append(cpu)
    return found


def _environment(home: Path) -> dict[str, str]:
    """As a user has it: byte code of the host's own modules is written and used."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PACELINE_HOME": str(home)}


def _start_and_ask(environment: Mapping[str, str]) -> tuple[float, float]:
    command = [sys.executable, "-m", "paceline", "serve", "--port", "0", "--update", "off"]
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        host, _, port = process.stdout.readline().split()[-1].removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            if not connection.recv(4096).startswith(b"HTTP/1.1 200 "):
                raise PacelineError("the server did not list its models")
        wall = time.perf_counter() - started
    finally:
        process.terminate()
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
        process.stdout.close()
    return wall, used.ru_utime + used.ru_stime


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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what the runtime manager costs.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--releases", nargs="*", default=RELEASES, metavar="NAME", help="Installed beside uv alone.")
    parser.add_argument("--online", action="store_true", help="Ask the package index what a second version adds.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Keep every single figure.")
    options = parser.parse_args(argv)
    paths.cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.cache(), prefix="benchmark-store.") as folder:
        figures = measure(options.rounds, options.releases, Path(folder), online=options.online)
    for name, value in figures["machine"].items():
        print(f"- {name}: {value}")
    print(f"\n{tables(figures)}")
    if options.json:
        options.json.write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
