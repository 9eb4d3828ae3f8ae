"""How Paceline stands: many cells or points held to one bar, in one row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from contenders import PACELINE, server_of
from growth import AXES, Point, Taken, counterpart, first_token, token_gap
from report import Cell, Record, Row, peer_of, rows, verdicts

CLOSE = 0.02
"""What single runs of the same thing differ by on a quiet machine."""


@dataclass(frozen=True)
class Standing:
    """One bar, and the ratio measured at each place."""

    bar: str
    least: float | None
    """No ratio may be lower; None for a bar that must not be passed upwards."""
    most: float | None
    ratios: Mapping[str, float]

    @property
    def held(self) -> int:
        """In how many places the bar is met."""
        return sum(self._missed_by(ratio) <= 0 for ratio in self.ratios.values())

    @property
    def close(self) -> int:
        """In how many it is missed by so little that another run may meet it."""
        return sum(0 < self._missed_by(ratio) <= CLOSE for ratio in self.ratios.values())

    @property
    def worst(self) -> str:
        """The place that is furthest from the bar on the wrong side, or nearest to it on the right one."""
        return max(self.ratios, key=lambda place: self._missed_by(self.ratios[place]))

    def _missed_by(self, ratio: float) -> float:
        return self.least - ratio if self.least is not None else ratio - (self.most or 0.0)


def of_matrix(records: Iterable[Record]) -> list[Standing]:
    """Every bar of the matrix over its cells."""
    found: dict[tuple[str, float | None, float | None], dict[str, float]] = defaultdict(dict)
    for cell, judged in verdicts(records).items():
        for verdict in judged:
            found[verdict.bar, verdict.least, verdict.most][str(cell)] = verdict.figure
    return [Standing(*bar, ratios) for bar, ratios in found.items()]


def of_growth(taken: Sequence[Taken]) -> list[Standing]:
    """Paceline beside the peer with the same setting, over all values of an axis."""
    runs = {(t.point, t.contender, t.repeat): t.run for t in taken}
    found: dict[tuple[str, float | None, float | None], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (point, name, repeat), mine in runs.items():
        theirs = runs.get((point, counterpart(name), repeat))
        if server_of(name) != PACELINE or theirs is None:
            continue
        place = _place(point, name)
        if point.axis == "context":
            found["first token over the peer's", None, 1.0][place].append(first_token(mine) / first_token(theirs))
            found["time of a token over the peer's", None, 1.0][place].append(token_gap(mine) / token_gap(theirs))
        else:
            speed = mine.tokens_per_second / theirs.tokens_per_second
            found["speed over the peer's, same setting", 1.0, None][place].append(speed)
    return [Standing(*bar, {p: median(ratios) for p, ratios in places.items()}) for bar, places in found.items()]


def table(standings: Iterable[tuple[str, Standing]]) -> str:
    """Markdown: a row for each bar, after the name of what it is about, said once."""
    head = "| figures | what | bar | met | missed by 2 % at most | median | worst, and where |\n|" + " --- |" * 7 + "\n"
    lines, last = [], ""
    for name, standing in standings:
        lines.append(_line("" if name == last else name, standing))
        last = name
    return head + "".join(lines)


def cell_table(records: Sequence[Record]) -> str:
    """Markdown: one row for each cell; speeds in tokens per second, gaps between the chunks of an answer."""
    found = rows(records)
    peer = peer_of(record.contender for record in records)
    repeats: dict[Cell, set[int]] = defaultdict(set)
    for record in records:
        repeats[record.cell].add(record.repeat)
    head = (
        f"| weights | kind | streams | temp. | {peer} | paceline | over it | first token over it |"
        f" gap p50/p99 ms | over it | best of {peer} | which | auto | over own no draft | over that best |"
        " its gap p50/p99 ms | accepted | repeats | others' cores |\n"
        "|" + " --- |" * 19 + "\n"
    )
    return head + "".join(_cell(cell, mine, peer, len(repeats[cell])) for cell, mine in found.items())


def _cell(cell: Cell, found: Sequence[Row], peer: str, repeats: int) -> str:
    by_name = {row.contender: row for row in found}
    plain, other, auto = by_name.get(PACELINE), by_name.get(peer), by_name.get(f"{PACELINE}+auto")
    best = max(
        (r for r in found if server_of(r.contender) != PACELINE), key=lambda r: r.tokens_per_second, default=None
    )
    cells = [
        cell.quantization,
        cell.kind,
        str(cell.streams),
        f"{cell.temperature:g}",
        _speed(other),
        _speed(plain),
        _ratio(None if plain is None else plain.over_peer, 1.0),
        _ratio(None if plain is None else plain.first_token_over_peer, most=1.0),
        _gaps(plain),
        _gaps_over(plain),
        _speed(best),
        "" if best is None else best.contender.partition("+")[2] or "no draft",
        _speed(auto),
        _ratio(None if auto is None else auto.over_plain, 0.98),
        _ratio(None if auto is None else auto.over_best, 1.0),
        _gaps(auto),
        "" if auto is None or auto.acceptance is None else f"{auto.acceptance:.2f}",
        str(repeats),
        f"{max(row.other_cores for row in found):.2f}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _speed(row: Row | None) -> str:
    return "" if row is None else f"{row.tokens_per_second:.1f}"


def _gaps(row: Row | None) -> str:
    return "" if row is None else f"{row.gap_p50_s * 1e3:.0f}/{row.gap_p99_s * 1e3:.0f}"


def _gaps_over(row: Row | None) -> str:
    """No bar holds Paceline to these, so none is in bold."""
    if row is None or row.gap_p50_over_peer is None or row.gap_p99_over_peer is None:
        return ""
    return f"{row.gap_p50_over_peer:.2f}x/{row.gap_p99_over_peer:.2f}x"


def _ratio(ratio: float | None, least: float | None = None, most: float | None = None) -> str:
    """In bold where it is behind by more than single runs differ by."""
    if ratio is None:
        return ""
    behind = (least is not None and ratio < least - CLOSE) or (most is not None and ratio > most + CLOSE)
    return f"**{ratio:.2f}x**" if behind else f"{ratio:.2f}x"


def _line(name: str, standing: Standing) -> str:
    bar = f"≥ {standing.least:.2f}x" if standing.least is not None else f"≤ {standing.most:.2f}x"
    worst = standing.worst
    figures = [
        f"{standing.held} of {len(standing.ratios)}",
        str(standing.close),
        f"{median(standing.ratios.values()):.2f}x",
        f"{standing.ratios[worst]:.2f}x: {worst}",
    ]
    return f"| {name} | {standing.bar} | {bar} | {' | '.join(figures)} |\n"


def _place(point: Point, contender: str) -> str:
    setting = contender.partition("+")[2] or "no draft"
    named = {"streams": f"{point.value} streams"}.get(point.axis, AXES[point.axis].what.format(point.value))
    return f"{named}, {setting}"
