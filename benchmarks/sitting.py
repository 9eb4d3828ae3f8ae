"""In which order a matrix is measured, so that a sitting that ends early has measured what matters most, and how the
next one goes on.

A round is one block of cells (a quantization, a kind of prompts, a number of streams; all temperatures) in one repeat.
First come a few blocks that have, together, every value of every dimension. Then values are as important as they come
early in their option, and a repeat counts as one place: the most important block is repeated before the least important
one is measured at all. A sweep has every block once before any is repeated, and those that the same servers can answer
one after the other.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from contenders import PACELINE, Contender
from paceline.errors import UsageError
from report import Cell, Record, verdicts


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


@dataclass(frozen=True)
class Taken:
    """What a round took with so many contenders."""

    round: Round
    contenders: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Taken:
        return cls(Round(**value["round"]), value["contenders"], value["seconds"])


def rounds(
    quantizations: Sequence[str],
    kinds: Sequence[str],
    streams: Sequence[int],
    repeats: Sequence[int],
    *,
    sweep: bool = False,
) -> list[Round]:
    """All rounds, the most telling first; in a sweep, of each repeat, the most telling quantization and streams
    with all its kinds."""
    if sweep:
        order = rounds(quantizations, kinds, streams, repeats)
        servers = list(dict.fromkeys((r.repeat, r.quantization, r.streams) for r in order))
        servers.sort(key=lambda server: server[0])
        return [Round(q, kind, n, repeat) for repeat, q, n in servers for kind in kinds]
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


def is_met(each: Round, records: Iterable[Record]) -> bool:
    """Whether the round's cells were measured and meet every bar by what was measured so far, in any repeat."""
    found = verdicts(r for r in records if each.holds(Record(r.cell, r.contender, each.repeat, r.run, 0.0)))
    return bool(found) and all(verdict.held for judged in found.values() for verdict in judged)


def expected_s(each: Round, contenders: int, taken: Sequence[Taken]) -> float | None:
    """How long a round will take with so many contenders, by those that were `taken`: by the latest of its own block,
    otherwise by the slowest with as many streams, otherwise by the slowest of all; None before the first."""
    costs = [(t.round, t.seconds / t.contenders) for t in taken]
    block = [cost for done, cost in costs if _block(done) == _block(each)]
    if block:
        return block[-1] * contenders
    alike = [cost for done, cost in costs if done.streams == each.streams] or [cost for _, cost in costs]
    return max(alike) * contenders if alike else None


def in_minutes(seconds: float | None) -> str:
    """So long, in words."""
    return "nobody knows how long" if seconds is None else f"about {seconds / 60:.1f} minutes"


def _block(each: Round) -> tuple[str, str, int]:
    return each.quantization, each.kind, each.streams


def gone_on(path: Path | None, head: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The head that a file is written with from now on, and what it holds so far (nothing if there is none).

    The machine is the first sitting's; `sittings` has the date and commit of each. Raises UsageError when the file's
    figures were taken with other code, of another machine, or in another way.
    """
    now = {name: head["machine"].get(name) for name in ("date", "paceline")}
    if path is None or not path.exists():
        return {**head, "sittings": [now]}, {}
    earlier = json.loads(path.read_text())
    other = [name for name in head if name != "machine" and earlier.get(name) != head[name]]
    if earlier["machine"].get("processor") != head["machine"].get("processor"):
        other.append("processor")
    if other:
        raise UsageError(f"{path} was measured with other {', '.join(other)}", help="give another file to --json")
    return {**head, "machine": earlier["machine"], "sittings": [*earlier["sittings"], now]}, earlier


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
