"""How many rows an engine computes well at a time, learned from the passes it makes.

Kernels take the rows of a matrix product in groups; what is left over takes almost as long as a group, or longer. With
llama.cpp, 8-bit weights and AVX-512, 18 rows took 177 ms and 20 rows 163 ms, with 4-bit ones 15 took 107 ms and 16 took
79 ms, while 16-bit ones have no such steps (docs/decisions/batches-and-passes.md). So a pass is worth filling up with
rows that are forgotten again, where that is known to save time on this machine.

The model of a pass of n rows, in seconds: a + b n + c4 [n mod 4 > 0] + c16 [n mod 16 > 0], fitted by least squares to
seconds per row, whose noise is about the same for all n. Older passes count less (exponential weights), and what is
believed before anything was measured counts as much as ever (ridge regression; Bishop, "Pattern Recognition and Machine
Learning", 3.3), so what no pass has told lately becomes uncertain again. A pass is filled up only as far as the gain is
larger than its own standard deviation and a margin; so one is left as it is now and then, and renews what is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_LEAST, _MOST = 5, 256
"""Rows of the passes that the model holds for: of few, reading the weights takes most; of many, what is left over is
little."""
_GROUPS = (4, 16)
_BELIEVED = (9.0, 1.0, 0.0, 0.0)
"""a, b, c4 and c16 before anything was measured, in rows: what reading the weights counts for, and no groups."""
_DEVIATIONS = (20.0, 0.5, 3.0, 3.0)
"""How far they may be from that."""
_NOISE = 0.03
"""Of one pass, in parts of its seconds."""
_WILD = 0.3
"""A pass is never believed to differ by more than so large a part from what was expected."""
_LEAST_RATE = 0.25
"""Of the seconds of a row that were the least so far: no row costs less."""
_MEMORY = 0.98
_AT_ONCE = 8
"""Passes that are learned from together, which costs as much as learning from one; the first ones are fewer."""
_LEAST_GAIN = 0.01
"""In parts of the pass."""


class Widths:
    """What passes over so many rows take."""

    def __init__(self) -> None:
        self._begin(0.0)

    def _begin(self, unit: float) -> None:
        self._unit = unit
        """Seconds of a row, by the fastest pass; all else is in this unit."""
        self._new: list[tuple[int, float]] = []
        """Passes that wait to be learned from."""
        self._passes = 0
        self._best: dict[tuple[int, int, int], int] = {}
        self._seen = [[0.0] * 4 for _ in range(4)]
        """The passes' part of the normal equations, both sides."""
        self._told: list[float] = [0.0] * 4
        self._known: list[float] = list(_BELIEVED)
        self._covariance: list[list[float]] = [
            [_DEVIATIONS[i] ** 2 if i == j else 0.0 for j in range(4)] for i in range(4)
        ]

    def observe(self, rows: int, seconds: float) -> None:
        """A pass over so many rows took so long."""
        if not _LEAST <= rows <= _MOST or not 0.0 < seconds < math.inf:
            return
        unit = seconds / (_BELIEVED[0] + rows)
        # A first pass may have waited for the weights to come from the disk.
        if not self._unit or 2 * unit < self._unit:
            self._begin(unit)
        self._new.append((rows, seconds))
        self._passes += 1
        if len(self._new) >= min(self._passes // _AT_ONCE, _AT_ONCE):
            self._learn()

    def best(self, rows: int, step: int, most: int) -> int:
        """To how many rows, at most `most`, a pass of `rows` is to be filled up, in steps of so many rows."""
        if not self._unit or not _LEAST <= rows <= _MOST:
            return rows
        end = min(most, rows + _GROUPS[-1])
        key = (rows, step, end)
        if key not in self._best:
            self._best[key] = self._find_best(rows, step, end)
        return self._best[key]

    def _find_best(self, rows: int, step: int, end: int) -> int:
        now = _features(rows)
        least = _LEAST_GAIN * _dot(self._known, now)
        best, best_gain = rows, 0.0
        for wanted in range(rows + step, end + 1, step):
            if all(wanted % group for group in _GROUPS):
                continue
            change = [a - b for a, b in zip(now, _features(wanted), strict=True)]
            gain = _dot(self._known, change)
            deviation = math.sqrt(max(_dot(change, [_dot(row, change) for row in self._covariance]), 0.0))
            if gain - deviation > least and gain > best_gain:
                best, best_gain = wanted, gain
        return best

    def _learn(self) -> None:
        """Take in the new passes, and solve the normal equations."""
        faded = _MEMORY ** len(self._new)
        self._seen = [[faded * value for value in row] for row in self._seen]
        self._told = [faded * value for value in self._told]
        for rows in {rows for rows, _ in self._new}:
            x = [value / rows for value in _features(rows)]
            expected = max(_dot(self._known, x), _LEAST_RATE)
            weights = told = 0.0
            for y in [seconds / (self._unit * rows) for n, seconds in self._new if n == rows]:
                usual = min(expected, y / _LEAST_RATE)
                y = min(max(y, (1 - _WILD) * usual), (1 + _WILD) * usual)
                weight = 1.0 / (_NOISE * y) ** 2
                weights += weight
                told += weight * y
            self._seen = [
                [old + weights * a * b for old, b in zip(row, x, strict=True)]
                for row, a in zip(self._seen, x, strict=True)
            ]
            self._told = [old + told * a for old, a in zip(self._told, x, strict=True)]
        self._new, self._best = [], {}
        beliefs = [1.0 / deviation**2 for deviation in _DEVIATIONS]
        left = [
            [value + (beliefs[i] if i == j else 0.0) for j, value in enumerate(row)] for i, row in enumerate(self._seen)
        ]
        right = [told + belief * value for told, belief, value in zip(self._told, beliefs, _BELIEVED, strict=True)]
        self._covariance = _inverse(left)
        self._known = [_dot(row, right) for row in self._covariance]


def _features(rows: int) -> list[float]:
    return [1.0, float(rows), *(float(rows % group > 0) for group in _GROUPS)]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _inverse(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    """Of a positive definite matrix, by Gauss and Jordan."""
    n = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(n))] for i, row in enumerate(matrix)]
    for i in range(n):
        rows[i] = [value / rows[i][i] for value in rows[i]]
        for j in range(n):
            if j != i:
                factor = rows[j][i]
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
    return [row[n:] for row in rows]
