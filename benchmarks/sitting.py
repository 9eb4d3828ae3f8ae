"""In which order a matrix is measured, so that a sitting that ends early has measured what matters most.

A round is one block of cells (a quantization, a kind of prompts, a number of streams; all temperatures) in one repeat,
with every contender once: what is compared was measured within minutes. Values are as important as they come early in
their option, and a repeat counts as one place: the most important block is repeated before the least important one is
measured at all.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from contenders import PEER, Contender
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
    """All rounds, the most important first."""
    ranked = [
        (sum(places), Round(quantizations[places[0]], kinds[places[1]], streams[places[2]], repeats[places[3]]))
        for places in itertools.product(*(range(len(axis)) for axis in (quantizations, kinds, streams, repeats)))
    ]
    return [each for _, each in sorted(ranked, key=lambda pair: pair[0])]


def field_of(each: Round, field: Sequence[Contender], records: Iterable[Record], finalists: int) -> list[Contender]:
    """Who takes part: in the first repeat all; later, of the peer's draft settings, those that were among its
    `finalists` fastest in one of the block's cells so far. With 0 finalists all take part always."""
    speeds: dict[Cell, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if each.holds(Record(record.cell, record.contender, each.repeat, record.run, 0.0)):
            speeds[record.cell][record.contender].append(record.run.tokens_per_second)
    if not speeds or not finalists:
        return list(field)
    settings = {c.name for c in field if c.server == PEER and c.drafts}
    kept: set[str] = set()
    for measured in speeds.values():
        ranked = sorted(settings & measured.keys(), key=lambda name: -median(measured[name]))
        kept.update(ranked[:finalists])
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
