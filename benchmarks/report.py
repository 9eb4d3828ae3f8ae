"""From single runs to a table: medians over the repeats, and ratios within each repeat.

The runs of one repeat are close together in time, so their ratios suffer least from a machine that gets faster or
slower; the ratio that is reported is the median of the repeats' ratios.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeAlias

from client import Run
from contenders import PACELINE, server_of


@dataclass(frozen=True, order=True)
class Cell:
    """What every contender is asked."""

    quantization: str
    kind: str
    streams: int
    temperature: float

    def __str__(self) -> str:
        plural = "s" if self.streams > 1 else ""
        return f"{self.quantization}, {self.kind}, {self.streams} stream{plural}, temperature {self.temperature:g}"


@dataclass(frozen=True)
class Record:
    """One run of one contender."""

    cell: Cell
    contender: str
    repeat: int
    run: Run
    other_cores: float
    """Cores that other programs kept busy meanwhile."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Record:
        run = Run.from_json(value["run"])
        return cls(Cell(**value["cell"]), value["contender"], value["repeat"], run, value["other_cores"])


@dataclass(frozen=True)
class Row:
    """One contender in one cell; ratios are None where there is nothing to compare with."""

    contender: str
    tokens_per_second: float
    over_peer: float | None
    """Speed over that of the peer without a draft."""
    over_best: float | None
    """Speed over that of the peer's fastest setting in this cell."""
    over_plain: float | None
    """Speed over that of the same server without a draft."""
    first_token_s: float
    first_token_over_peer: float | None
    gap_p50_s: float
    gap_p99_s: float
    gap_p50_over_peer: float | None
    gap_p99_over_peer: float | None
    acceptance: float | None
    same_text: tuple[int, int]
    """Answers equal to those of the peer without a draft (of the first contender where it is missing), of how many."""
    spread: float
    """Fastest over slowest repeat."""
    other_cores: float
    """Cores that other programs kept busy, in the worst repeat."""


def rows(records: Iterable[Record]) -> dict[Cell, list[Row]]:
    """Each cell's contenders in the order they ran."""
    cells: dict[Cell, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    others: dict[tuple[Cell, str], float] = defaultdict(float)
    for record in records:
        cells[record.cell][record.contender][record.repeat] = record.run
        key = (record.cell, record.contender)
        others[key] = max(others[key], record.other_cores)
    return {cell: [_row(name, runs, others[cell, name]) for name in runs] for cell, runs in sorted(cells.items())}


def tables(records: Iterable[Record]) -> str:
    """Markdown: a table per cell."""
    return "\n".join(f"### {cell}\n\n{_table(found)}" for cell, found in rows(records).items())


_Runs: TypeAlias = Mapping[int, Run]
"""By repeat."""


@dataclass(frozen=True)
class Verdict:
    """One bar in one cell."""

    bar: str
    least: float | None
    """The ratio must not be lower; None for a bar that must not be passed upwards."""
    most: float | None
    ratios: tuple[float, ...]
    """One for each repeat that measured both sides."""

    @property
    def figure(self) -> float:
        return median(self.ratios)

    @property
    def held(self) -> bool:
        """Whether the median meets the bar."""
        return (self.least is None or self.figure >= self.least) and (self.most is None or self.figure <= self.most)


def verdicts(records: Iterable[Record]) -> dict[Cell, list[Verdict]]:
    """Paceline held to its bars in each cell; a bar of which one side was not measured is left out."""
    cells: dict[Cell, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        cells[record.cell][record.contender][record.repeat] = record.run
    found: dict[Cell, list[Verdict]] = {}
    for cell, runs in sorted(cells.items()):
        plain, auto, other = runs.get(PACELINE), runs.get(f"{PACELINE}+auto"), runs.get(peer_of(runs))
        best = runs.get(_best_of_peer(runs))
        bars: list[tuple[str, float | None, float | None, _Runs | None, _Runs | None, Callable[[Run], float]]] = [
            ("auto over the peer's best", 1.0, None, auto, best, _speed),
            ("auto over own no draft", 0.98, None, auto, plain, _speed),
        ]
        if cell.streams in (1, 8):  # the promise names these
            bars += [
                ("speed over the peer, no draft", 1.0, None, plain, other, _speed),
                ("first token over the peer's, no draft", None, 1.0, plain, other, _first_token),
            ]
        judged = [
            Verdict(bar, least, most, ratios)
            for bar, least, most, mine, theirs, of in bars
            if mine is not None and (ratios := tuple(_ratios(mine, theirs, of)))
        ]
        if judged:
            found[cell] = judged
    return found


def verdict_table(records: Iterable[Record]) -> str:
    """Markdown: a row for each bar of each cell, what is missed in bold; empty without anything to judge."""
    found = verdicts(records)
    if not found:
        return ""
    lines = [
        f"| {cell} | {v.bar} | {'' if v.least is None else f'≥ {v.least:.2f}x'}"
        f"{'' if v.most is None else f'≤ {v.most:.2f}x'} | {v.figure:.3f}x |"
        f" {min(v.ratios):.3f} to {max(v.ratios):.3f} | {len(v.ratios)} | {'held' if v.held else '**missed**'} |\n"
        for cell, judged in found.items()
        for v in judged
    ]
    held = sum(v.held for judged in found.values() for v in judged)
    head = "| cell | what | bar | measured | repeats from to | repeats | verdict |\n|" + " --- |" * 7 + "\n"
    return f"{held} of {len(lines)} bars held.\n\n{head}{''.join(lines)}"


def coverage(records: Iterable[Record], cells: int) -> str:
    """A sentence: how many cells, of so many of the whole matrix, were measured, and in how many repeats."""
    repeats: dict[Cell, set[int]] = defaultdict(set)
    for record in records:
        repeats[record.cell].add(record.repeat)
    counts = sorted(Counter(map(len, repeats.values())).items())
    said = ", ".join(f"{many} in {n} repeat{'s' if n > 1 else ''}" for n, many in counts)
    return f"{len(repeats)} of the matrix's {cells} cells were measured: {said}.\n" if repeats else ""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share does not exceed (nearest rank); NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _row(name: str, runs: Mapping[str, Mapping[int, Run]], other_cores: float) -> Row:
    mine = runs[name]
    speeds = [run.tokens_per_second for run in mine.values()]
    server, peer = server_of(name), peer_of(runs)
    best = _best_of_peer(runs)
    reference = runs.get(peer) or next(iter(runs.values()))
    drafted = sum(a.drafted for run in mine.values() for a in run.answers)
    accepted = sum(a.accepted for run in mine.values() for a in run.answers)
    return Row(
        contender=name,
        tokens_per_second=median(speeds),
        over_peer=_ratio(mine, runs.get(peer), _speed),
        over_best=_ratio(mine, runs.get(best), _speed),
        over_plain=_ratio(mine, runs.get(server), _speed),
        first_token_s=median(map(_first_token, mine.values())),
        first_token_over_peer=_ratio(mine, runs.get(peer), _first_token),
        gap_p50_s=median(map(_gap_p50, mine.values())),
        gap_p99_s=median(map(_gap_p99, mine.values())),
        gap_p50_over_peer=_ratio(mine, runs.get(peer), _gap_p50),
        gap_p99_over_peer=_ratio(mine, runs.get(peer), _gap_p99),
        acceptance=accepted / drafted if drafted else None,
        same_text=_same_text(mine, reference),
        spread=max(speeds) / min(speeds),
        other_cores=other_cores,
    )


def _speed(run: Run) -> float:
    return run.tokens_per_second


def _first_token(run: Run) -> float:
    return median(run.first_token_s) if run.first_token_s else math.nan


def _gap_p50(run: Run) -> float:
    return percentile(run.gaps_s, 0.5)


def _gap_p99(run: Run) -> float:
    return percentile(run.gaps_s, 0.99)


def _ratio(mine: Mapping[int, Run], other: Mapping[int, Run] | None, of: Callable[[Run], float]) -> float | None:
    ratios = _ratios(mine, other, of)
    return median(ratios) if ratios else None


def _ratios(mine: Mapping[int, Run], other: Mapping[int, Run] | None, of: Callable[[Run], float]) -> list[float]:
    """Of every repeat that both were measured in."""
    return [of(mine[repeat]) / of(other[repeat]) for repeat in mine if repeat in other] if other else []


def peer_of(contenders: Iterable[str]) -> str:
    """The server among them that is not Paceline; empty if there is none."""
    return next((server for name in contenders if (server := server_of(name)) != PACELINE), "")


def _best_of_peer(runs: Mapping[str, Mapping[int, Run]]) -> str:
    """The peer's setting that was fastest, without a draft included; empty if none was measured."""
    peers = [each for each in runs if server_of(each) != PACELINE]
    return max(peers, key=lambda each: median(r.tokens_per_second for r in runs[each].values()), default="")


def _same_text(mine: Mapping[int, Run], reference: Mapping[int, Run]) -> tuple[int, int]:
    expected = next(iter(reference.values())).answers
    pairs = [(a.text, b.text) for run in mine.values() for a, b in zip(run.answers, expected, strict=False)]
    return sum(a == b for a, b in pairs), len(pairs)


def _table(found: Sequence[Row]) -> str:
    peer = peer_of(row.contender for row in found) or "the peer"
    head = (
        f"| contender | tokens/s | over {peer} | over its best | over own no draft | first token ms |"
        f" over {peer} | gap p50 ms | gap p99 ms | accepted | same text | fastest/slowest | others' cores |\n"
        "|" + " --- |" * 13 + "\n"
    )
    return head + "".join(_line(row) + "\n" for row in found)


def _line(row: Row) -> str:
    cells = [
        row.contender,
        f"{row.tokens_per_second:.2f}",
        *(_times(ratio) for ratio in (row.over_peer, row.over_best, row.over_plain)),
        f"{row.first_token_s * 1e3:.0f}",
        _times(row.first_token_over_peer),
        f"{row.gap_p50_s * 1e3:.1f}",
        f"{row.gap_p99_s * 1e3:.1f}",
        "" if row.acceptance is None else f"{row.acceptance:.2f}",
        f"{row.same_text[0]}/{row.same_text[1]}",
        f"{row.spread:.2f}",
        f"{row.other_cores:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"
