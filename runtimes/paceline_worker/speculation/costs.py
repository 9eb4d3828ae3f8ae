"""What the engine's operations cost on this machine, learned from the times they took.

The time to verify n tokens in one batch is a curve with steps and plateaus (kernels change with the batch's size), on a
machine whose speed drifts and whose single measurements are noisy. A curve keeps one running estimate per n in
logarithms, so that an outlier of ten times weighs no more than one of 1.5 times, a common drift of the machine moves
all points, and what is read is the nondecreasing curve nearest to the points (pool adjacent violators, Barlow et al.
1972), straight between them.

No clock is read here: times are passed in, so that the same observations always give the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_CLAMP = 0.4
"""Largest surprise, in log seconds, that one observation may cause."""
_LEAST_STEP = 0.015
"""Weight of a new observation once many are known: a memory of about 70 observations of that size."""
_TREND_STEP = 0.05
_NO_TREND = 0.1
"""Mean surprise of the last 20 or so, wild ones aside, that is still noise; more is a drift of the machine."""
_CURIOSITY = 1.5
"""Standard errors by which a little-known size is taken for cheaper than it was, so that it gets tried again."""
_KNOWN = 8
"""Observations after which a point is well known."""
_CONVINCED = 6
"""So many wild observations of a size in a row, all slower or all faster, are the truth."""
_FORGET_AFTER = 2048
"""Observations of other sizes after which one that was not seen again is unknown: the machine may have changed."""
_LEAST_READ_AT_ONCE = 4
"""Tokens that are read in the time of one draft step, at the very least."""
_TELLING = 16
"""Tokens that must be read for each draft step beside them, so that their time says something of reading."""
_WARMING_UP = 8
"""A first reading is never believed to have taken more than so many times as long as later ones."""
_READ_EVERY = 16
"""Observations after which the curve is drawn anew, when no point is new."""


class CostCurve:
    """Seconds of one operation over its size n = 1, 2, ...; unknown until the first observation."""

    def __init__(self, *, prior_slope: float = 0.1) -> None:
        """`prior_slope`: what one more is assumed to cost, as a part of the cost of one, until it is measured."""
        self._slope = prior_slope
        self._points: dict[int, _Point] = {}
        self._drift = 0.0
        self._trend = 0.0
        self._noise = 0.1
        self._unread = 0
        self._clock = 0
        self._tables: dict[float, list[float]] = {}
        """What is read, by curiosity."""

    @property
    def known(self) -> bool:
        return bool(self._points)

    @property
    def largest(self) -> int:
        """The largest size that was observed; 0 if none was."""
        return max(self._points, default=0)

    @property
    def least(self) -> int:
        """The smallest size that was observed more than once; 0 if none was."""
        return min((n for n, point in self._points.items() if point.count > 1), default=0)

    def count(self, n: int) -> int:
        """Observations of size n."""
        point = self._points.get(n)
        return 0 if point is None else point.count

    def spans(self, n: int) -> bool:
        """Whether sizes up to n and from n on were each observed more than once, so that n lies between them."""
        seen = [size for size, point in self._points.items() if point.count > 1]
        return bool(seen) and min(seen) <= n <= max(seen)

    def observe(self, n: int, seconds: float) -> None:
        """Learn that size n took `seconds`; what no clock can have measured is ignored."""
        if n < 1 or not 0.0 < seconds < math.inf:
            return
        self._clock += 1
        if self._clock % 64 == 0:
            self._forget(_FORGET_AFTER)
        value = math.log(min(max(seconds, 1e-9), 1e6)) - self._drift
        point = self._points.get(n)
        if point is None:
            point = self._points[n] = _Point(value)
            point.seen = self._clock
            self._redraw()
            return
        point.seen = self._clock
        surprise = value - point.value
        point.count_wild(surprise)
        point.count += 1
        if point.count == 2:  # of two, the faster: a first call often pays for warming up
            point.value = min(point.value, value) + min(abs(surprise), _CLAMP) / 2
        else:
            step = max(1.0 / point.count, _LEAST_STEP)
            if abs(point.wild) >= 4:  # not noise: the machine changed
                step = max(step, 0.3)
            clamped = min(max(surprise, -_CLAMP), _CLAMP)
            if point.count > _KNOWN and not point.wild:
                self._trend += _TREND_STEP * (clamped - self._trend)
                self._noise += _TREND_STEP * (abs(clamped) - self._noise)
                if abs(self._trend) > _NO_TREND:
                    self._drift += _TREND_STEP * self._trend
            if abs(point.wild) >= _CONVINCED:
                point.value = value
                self._forget(_CONVINCED)
                point.wild = 0
            else:
                point.value += step * clamped
        self._unread += 1
        if point.count <= _KNOWN or self._unread >= _READ_EVERY or point.wild:
            self._redraw()

    def at(self, n: int) -> float:
        """Estimated seconds of size n; 0 while nothing is known."""
        if n < 1 or not self._points:
            return 0.0
        return self.table(n)[n]

    def table(self, last: int, *, curious: bool = True) -> list[float]:
        """Estimated seconds by size, at least up to `last`; index 0 is 0. Do not change it.

        `curious`: a size that is little known is taken for somewhat cheaper, so that it gets tried.
        """
        if not self._points:
            return [0.0] * (last + 1)
        curiosity = _CURIOSITY if curious else 0.0
        table = self._tables.get(curiosity, [])
        if last >= len(table):
            table = self._tables[curiosity] = self._draw(max(last, 2 * len(table), max(self._points)), curiosity)
        return table

    def _forget(self, after: int) -> None:
        """Drop the sizes that were not among the last `after` observations."""
        old = [n for n, point in self._points.items() if self._clock - point.seen > after]
        if old:
            for n in old[: len(self._points) - 1]:
                del self._points[n]
            self._redraw()

    def _redraw(self) -> None:
        self._unread = 0
        self._tables = {}

    def _draw(self, last: int, curiosity: float) -> list[float]:
        knots = self._knots(curiosity)
        first_n, first = knots[0]
        table = [0.0] * (last + 1)
        for n in range(1, min(first_n, last) + 1):
            table[n] = first * (1 + self._slope * (n - 1)) / (1 + self._slope * (first_n - 1))
        for (left_n, left), (right_n, right) in pairwise(knots):
            slope = (right - left) / (right_n - left_n)
            for n in range(left_n + 1, min(right_n, last) + 1):
                table[n] = left + slope * (n - left_n)
        last_n, end = knots[-1]
        slope = self._tail(knots)
        for n in range(last_n + 1, last + 1):
            table[n] = end + slope * (n - last_n)
        return table

    def _knots(self, curiosity: float) -> list[tuple[int, float]]:
        """The points, made nondecreasing."""
        blocks: list[list[float]] = []  # value, weight, points
        sizes = sorted(self._points)
        for n in sizes:
            point = self._points[n]
            hope = curiosity * self._noise / math.sqrt(point.count)
            blocks.append([point.value - hope, float(min(point.count, 256)), 1])
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                value, weight, points = blocks.pop()
                before = blocks[-1]
                total = before[1] + weight
                before[0] = (before[0] * before[1] + value * weight) / total
                before[1] = total
                before[2] += points
        values = [math.exp(value + self._drift) for value, _, points in blocks for _ in range(int(points))]
        return list(zip(sizes, values, strict=True))

    def _tail(self, knots: list[tuple[int, float]]) -> float:
        """Slope beyond the largest size seen: the smaller of the last and the mean slope, so that it gets tried."""
        (first_n, first), (last_n, last) = knots[0], knots[-1]
        if len(knots) == 1:
            return self._slope * first / (1 + self._slope * (first_n - 1))
        left_n, left = knots[-2]
        return min((last - left) / (last_n - left_n), (last - first) / (last_n - first_n))


class Costs:
    """What drafting and verifying cost, for one pair of models on one machine, whatever the request.

    A pass over the main model's weights costs by its rows, the tokens of all its sequences: how many sequences they
    belong to hardly matters (docs/decisions/speculation-controller.md), so one curve serves one sequence and many.
    """

    def __init__(self) -> None:
        self.verify = CostCurve()
        """Seconds of a pass over n rows, all with outputs."""
        self._draft = CostCurve(prior_slope=0.2)
        self._read = 0.0
        self._reads = 0

    def observe_verify(self, seconds: float, passes: Sequence[int]) -> None:
        """Passes of so many rows each of the main model took `seconds` together, sampling included.

        Batches that also carry prompt chunks are not to be reported.
        """
        if len(passes) == 1:
            self.verify.observe(passes[0], seconds)
            return
        expected = [self.verify.at(rows) for rows in passes]
        if sum(expected) > 0.0:
            for rows, part in zip(passes, expected, strict=True):
                self.verify.observe(rows, part * (seconds / sum(expected)))

    def observe_draft(self, seconds: float, steps: int, occupancy: int = 1, lag: int = 1) -> None:
        """The draft model read `lag` tokens that it had missed and took `steps` steps with `occupancy` sequences."""
        if steps < 1 or not 0.0 < seconds < math.inf:
            return
        if lag <= 2:
            self._draft.observe(max(occupancy, 1), seconds / steps)
            return
        step = self._draft.at(max(occupancy, 1))
        if step == 0.0:
            self._learn_read(seconds / (lag + 4 * steps), 0.2)
        else:  # the fewer tokens were read for each step, the more is it the steps' noise
            read = min((seconds - steps * step) / lag, step / _LEAST_READ_AT_ONCE)
            self._learn_read(read, 0.2 * min(lag / (_TELLING * steps), 1.0))

    def observe_read(self, seconds: float, tokens: int) -> None:
        """The draft model took so long to read so many tokens that it had missed, and did nothing else."""
        if tokens < 1 or not 0.0 < seconds < math.inf:
            return
        read = seconds / tokens
        if 4 * read < self._read:  # nothing makes reading faster than it is: an old wild figure
            self._read = read
        self._learn_read(read, 0.2)

    def _learn_read(self, read: float, weight: float) -> None:
        known = self._read
        self._reads += 1
        if known == 0.0:
            self._read = min(max(read, 0.0), 1e6)
        elif self._reads == 2:  # of two, the faster: a first call often pays for warming up
            self._read = min(max(read, known / _WARMING_UP), known)
        else:
            self._read += weight * (min(max(read, known / 2), 2 * known) - known)

    def draft_step(self, occupancy: int = 1) -> float:
        """Seconds of one draft step with `occupancy` sequences; a tenth of plain decoding until it is measured."""
        if self._draft.known:
            return self._draft.at(max(occupancy, 1))
        return 0.1 * self.verify.at(max(occupancy, 1))

    @property
    def knows_reading(self) -> bool:
        """Whether it is known what the draft takes to read."""
        return self._read > 0.0

    def draft_read(self, tokens: int) -> float:
        """Seconds for the draft to read `tokens` that it has missed."""
        return self._read * tokens


class _Point:
    __slots__ = ("count", "seen", "value", "wild")

    def __init__(self, value: float) -> None:
        self.value = value
        self.count = 1
        self.seen = 0
        self.wild = 0

    def count_wild(self, surprise: float) -> None:
        """Count surprises beyond the clamp that all point the same way, negative ones as negative."""
        if abs(surprise) < _CLAMP:
            self.wild = 0
        elif surprise > 0:
            self.wild = max(self.wild, 0) + 1
        else:
            self.wild = min(self.wild, 0) - 1
