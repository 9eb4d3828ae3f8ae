"""What a least probability of drafted tokens does to automatic drafts: simulated time over recorded drafts.

    python benchmarks/least_probability.py                                   every curve; some minutes
    python benchmarks/least_probability.py --curves mlx-7m --bounds 0 0.1 0.75

No model runs, so the figures are the same on every machine: the controller rides the traces of the sample main model
with its good, weak and random drafts (tests/worker/speculation_simulator.py) over curves of cost, and sees noisy times.
`AUTOMATIC` in paceline_worker.speculation has the bound that is the default.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from machine import ROOT

sys.path.insert(0, str(ROOT / "runtimes"))
sys.path.insert(0, str(ROOT / "tests" / "worker"))

from speculation_simulator import FIXED_LENGTHS, MACHINES, Machine, Trace, bounded, read_traces, ride

_DRAFTS = ("good", "weak", "bad")
_TEMPERATURES = (0.0, 0.8)


@dataclass(frozen=True)
class Figure:
    """One ride: speeds over those of other policies on the same traces, the controller's warm-up included."""

    curve: str
    bound: float
    over_plain: float
    over_best_fixed: float
    """The fixed length that turned out to be the fastest; no draft is one of them."""


def figures(curves: Sequence[str], bounds: Sequence[float], runs: int, noise: float) -> Iterator[Figure]:
    """Every draft at every temperature so many times on each curve, with each bound."""
    for name, draft, temperature in itertools.product(curves, _DRAFTS, _TEMPERATURES):
        traces, machine = read_traces(draft, temperature), MACHINES[name]
        fixed = [_speed(traces, machine, length) for length in FIXED_LENGTHS]
        for bound, run in itertools.product(bounds, range(runs)):
            done = ride(traces, replace(machine, noise=noise), knobs=bounded(bound), seed=run)
            speed = done.tokens / done.seconds
            yield Figure(name, bound, speed / fixed[0], speed / max(fixed))


def table(found: Sequence[Figure]) -> str:
    """Markdown: a column for each bound."""
    bounds = list(dict.fromkeys(figure.bound for figure in found))
    head = f"| curve | {' | '.join(f'{bound:g}' for bound in bounds)} |\n|" + " --- |" * (1 + len(bounds)) + "\n"
    lines = []
    for curve in dict.fromkeys(figure.curve for figure in found):
        speeds = [_mean([f.over_plain for f in found if (f.curve, f.bound) == (curve, bound)]) for bound in bounds]
        lines.append(_line(curve, speeds))
    of = [[figure for figure in found if figure.bound == bound] for bound in bounds]
    lines += [
        _line("all", [_mean([f.over_plain for f in each]) for each in of]),
        _line("worst cell over no draft", [min(f.over_plain for f in each) for each in of]),
        _line("all, over the best fixed length", [_mean([f.over_best_fixed for f in each]) for each in of]),
        _line("worst cell over the best fixed length", [min(f.over_best_fixed for f in each) for each in of]),
    ]
    return f"Speed over no draft, geometric means:\n\n{head}{''.join(lines)}"


def _speed(traces: Sequence[Trace], machine: Machine, length: int) -> float:
    done = ride(traces, machine, length)
    return done.tokens / done.seconds


def _mean(ratios: Sequence[float]) -> float:
    return math.exp(fmean(map(math.log, ratios)))


def _line(name: str, values: Sequence[float]) -> str:
    return f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show what a least probability does to automatic drafts.")
    parser.add_argument("--bounds", nargs="+", type=float, default=[0.0, 0.2, 0.4, 0.6, 0.75])
    parser.add_argument("--curves", nargs="+", choices=[*MACHINES], default=[*MACHINES])
    parser.add_argument("--runs", type=int, default=2, help="of each cell, with other noise")
    parser.add_argument("--noise", type=float, default=0.3, help="by what part a single time may be off")
    options = parser.parse_args(argv)
    print(table(list(figures(options.curves, options.bounds, options.runs, options.noise))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
