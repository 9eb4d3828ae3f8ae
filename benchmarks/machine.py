"""What figures were taken on: a report without it says nothing."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import time
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


class OtherWork:
    """How many cores everything but this benchmark keeps busy, from its making on. Engines wait for their threads by
    spinning, so a neighbour that takes half a core can cost them far more than half a core."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy, self._own = _busy_s(), _own_s()

    def cores(self) -> float:
        """The mean since then; processes that the benchmark started and that still run count as its own."""
        busy, own = _busy_s() - self._busy, _own_s() - self._own
        return max(0.0, busy - own) / max(time.monotonic() - self._start, 1e-3)


def wait_for_quiet(cores: float, patience_s: float) -> bool:
    """Wait until others keep at most so many cores busy for a second; False when patience ends first."""
    end = time.monotonic() + patience_s
    while True:
        others = OtherWork()
        time.sleep(1.0)
        if others.cores() <= cores:
            return True
        if time.monotonic() > end:
            return False


def _busy_s() -> float:
    """CPU time of the whole machine, with what a hypervisor gave to others."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own_s() -> float:
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(paceline.__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _first_line(command: str, argument: str) -> str:
    path = shutil.which(command)
    if path is None:
        return "none"
    done = subprocess.run([path, argument], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0]
