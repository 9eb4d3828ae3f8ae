"""In which order a matrix is measured, so that a sitting that ends early has measured what matters most.

A round is one block of cells (a quantization, a kind of prompts, a number of streams; all temperatures) in one repeat:
what is compared was measured within minutes. First come a few blocks that have, together, every value of every
dimension. Then values are as important as they come early in their option, and a repeat counts as one place: the most
important block is repeated before the least important one is measured at all.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from contenders import PACELINE, Contender
from report import Cell, Record


@dataclass(frozen=True)
class Round:
    """One block of cells in one repeat."""

    quantization: str
    kind: str
    streams: int
    repeat: int

    def __str__(self) -> str:
        plural = "s" if self.streams > 1 else ""
        return f"{self.quantization}, {self.kind}, {self.streams} stream{plural}, repeat {self.repeat}"

    def cells(self, temperatures: Iterable[float]) -> list[Cell]:
        return [Cell(self.quantization, self.kind, self.streams, t) for t in temperatures]

    def holds(self, record: Record) -> bool:
        cell = record.cell
        mine = (self.quantization, self.kind, self.streams, self.repeat)
        return mine == (cell.quantization, cell.kind, cell.streams, record.repeat)


def rounds(
    quantizations: Sequence[str], kinds: Sequence[str], streams: Sequence[int], repeats: Sequence[int]
) -> list[Round]:
    """All rounds, the most telling first."""
    axes = (quantizations, kinds, streams, repeats)
    ranked = [
        (sum(places), Round(quantizations[places[0]], kinds[places[1]], streams[places[2]], repeats[places[3]]))
        for places in itertools.product(*(range(len(axis)) for axis in axes))
    ]
    spanning = [
        Round(quantizations[i % len(quantizations)], kinds[i % len(kinds)], streams[i % len(streams)], repeats[0])
        for i in range(max(len(quantizations), len(kinds), len(streams)))
    ]
    rest = [each for _, each in sorted(ranked, key=lambda pair: pair[0])]
    return list(dict.fromkeys([*spanning, *rest]))


def field_of(each: Round, field: Sequence[Contender], records: Iterable[Record], finalists: int) -> list[Contender]:
    """Who takes part. Of the peer's draft settings in a block's first round the scouts, in its second all, and later
    those that were among its `finalists` fastest in one of the cells so far; everybody else always. Without scouts in
    the field the second round's turn comes at once, and with 0 finalists all take part always."""
    speeds: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if each.holds(Record(record.cell, record.contender, each.repeat, record.run, 0.0)):
            speeds[record.cell][record.contender].append(record.run.tokens_per_second)
    settings = {c.name for c in field if c.server != PACELINE and c.drafts}
    scouts = {c.name for c in field if c.name in settings and c.scouts} or settings
    measured = {name for runs in speeds.values() for name in runs} & settings
    if finalists == 0:
        kept = settings
    elif not speeds:
        kept = scouts
    elif measured != settings:
        kept = settings
    else:
        ranked = [sorted(settings & runs.keys(), key=lambda name: -median(runs[name])) for runs in speeds.values()]
        kept = {name for names in ranked for name in names[:finalists]}
    return [c for c in field if c.name not in settings or c.name in kept]


def expected_s(each: Round, contenders: int, taken: Sequence[tuple[Round, int, float]]) -> float | None:
    """How long a round will take with so many contenders, by those that were `taken` (round, contenders, seconds): by
    the latest of its own block, otherwise by the slowest of all; None before the first."""
    costs = [(done, seconds / count) for done, count, seconds in taken]
    block = [cost for done, cost in costs if (done.quantization, done.kind, done.streams) == _block(each)]
    if block:
        return block[-1] * contenders
    return max(cost for _, cost in costs) * contenders if costs else None


def _block(each: Round) -> tuple[str, str, int]:
    return each.quantization, each.kind, each.streams


def turned(field: Sequence[Contender], repeat: int) -> Sequence[Contender]:
    """The same contenders, beginning with another one each time: none is always measured first."""
    start = repeat % len(field)
    return [*field[start:], *field[:start]]


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of figures whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content))
    part.replace(path)


def end_cleanly() -> None:
    """From now on a request to end this process leaves no server behind, as an interrupt leaves none."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
