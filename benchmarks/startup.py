"""How long the command line takes to say something: wall time of whole processes.

python benchmarks/startup.py [--runs 20]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from machine import describe_machine
from report import percentile

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "paceline --help": ["-m", "paceline", "--help"],
    "paceline runtime ls": ["-m", "paceline", "runtime", "ls"],
    "paceline ls": ["-m", "paceline", "ls"],
}


def wall_times(arguments: Sequence[str], runs: int) -> list[float]:
    """Seconds of each run, after one that does not count (it may compile modules or fill a cache)."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return times[1:]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the start of the command line.")
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args(argv)
    for name, value in describe_machine().items():
        print(f"- {name}: {value}")
    print("\n| command | median ms | p95 ms | fastest ms |\n| --- | --- | --- | --- |")
    for name, arguments in COMMANDS.items():
        times = wall_times(arguments, options.runs)
        figures = (statistics.median(times), percentile(times, 0.95), min(times))
        print(f"| `{name}` | {' | '.join(f'{t * 1e3:.0f}' for t in figures)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
