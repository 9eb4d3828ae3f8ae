"""What figures were taken on: a report without it says nothing."""

from __future__ import annotations

import datetime
import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

import paceline
from paceline.survey import describe, take_survey

ROOT = Path(__file__).parents[1]
_FACTS = ("processor", "CPU features", "physical cores", "memory", "GPUs", "operating system", "version", "Python")


def describe_machine() -> dict[str, str]:
    """Facts for the head of a report, in words."""
    facts = {name: said for name, said, _ in describe(take_survey()) if name in _FACTS}
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "paceline": f"{paceline.__version__}, commit {commit()}",
        **facts,
        "compiler": _first_line("c++", "--version"),
    }


def commit() -> str:
    """The commit of the checkout that `paceline` is imported from, marked when its files differ from it."""
    try:
        name = _git("rev-parse", "--short=10", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name} with changes" if changed else name


def measured_code(asked_by: Iterable[str], root: Path = ROOT) -> str:
    """Names what figures depend on beside machine and parameters: the modules of Paceline, its plugins and workers, and
    those of the benchmarks that ask (by their names). Commits that change none of them have it in common."""
    files = [path for room in ("core", "plugins", "runtimes") for path in (root / room).rglob("*.py")]
    files += [root / "benchmarks" / f"{name}.py" for name in asked_by]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


class OtherWork:
    """How many cores everything but what is measured keeps busy, from its making on. Engines wait for their threads by
    spinning, so a neighbour that takes half a core can cost them far more than half a core."""

    def __init__(self, measured: Iterable[psutil.Process] | None = None) -> None:
        """`measured` are the processes that count as the benchmark's own, with their children; all that it started
        unless given."""
        self._measured = None if measured is None else tuple(measured)
        self._start = time.monotonic()
        self._busy, self._own = _busy_s(), _own_s(self._measured)

    def cores(self) -> float:
        """The mean since then, of own processes those that still run."""
        busy, own = _busy_s() - self._busy, _own_s(self._measured) - self._own
        return max(0.0, busy - own) / max(time.monotonic() - self._start, 1e-3)


def wait_for_quiet(cores: float, patience_s: float, measured: Iterable[psutil.Process] | None = None) -> bool:
    """Wait until others keep at most so many cores busy for a quarter of a second; False when patience ends first."""
    end = time.monotonic() + patience_s
    while True:
        others = OtherWork(measured)
        time.sleep(0.25)
        if others.cores() <= cores:
            return True
        if time.monotonic() > end:
            return False


def _busy_s() -> float:
    """CPU time of the whole machine, with what a hypervisor gave to others."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own_s(measured: Iterable[psutil.Process] | None) -> float:
    me = psutil.Process()
    return cpu_s(me) + sum(map(cpu_s_of_all, me.children() if measured is None else measured))


def cpu_s(process: psutil.Process) -> float:
    """What a process has computed so far; 0 of one that has ended."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def cpu_s_of_all(process: psutil.Process) -> float:
    """The same with its children and theirs that still run."""
    try:
        children = process.children(recursive=True)
    except psutil.Error:
        return 0.0
    return cpu_s(process) + sum(map(cpu_s, children))


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(paceline.__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _first_line(command: str, argument: str) -> str:
    path = shutil.which(command)
    if path is None:
        return "none"
    done = subprocess.run([path, argument], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]
