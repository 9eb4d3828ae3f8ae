"""How far drafts reach, and what they would be worth with other sequences beside them.

What is accepted does not depend on how many sequences share a batch, and what a pass costs depends on its rows alone.
So what one sequence taught says what drafting is worth for eight, before eight were ever drafted for.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline_worker.speculation.costs import Costs

_POSITIONS = 8
_ENOUGH = 8
_STEP = 0.02


class Reach:
    """Mean probability, by position, that a drafted token and all before it are accepted."""

    def __init__(self) -> None:
        self._survivals = [0.0] * _POSITIONS
        self._seen = 0

    def observe(self, survivals: Sequence[float], expected: float, run: float) -> None:
        """A draft and the chances of its tokens, that of the one after them, and how fast they fall from there on."""
        self._seen += 1
        step = max(1.0 / self._seen, _STEP)
        for i in range(_POSITIONS):
            if i < len(survivals):
                value = survivals[i]
            else:
                value, expected = expected, expected * run
            self._survivals[i] += step * (value - self._survivals[i])

    def foresee(self, costs: Costs, occupancy: int) -> tuple[float, float] | None:
        """What drafting is worth with `occupancy` sequences: tokens per second, and tokens a draft, net of its price.

        The rate is the best over all lengths, none included; the worth is the best length's at that rate, negative
        when none pays. None while too little is known.
        """
        if self._seen < _ENOUGH or not costs.verify.known:
            return None
        table = costs.verify.table(occupancy * (1 + _POSITIONS))
        plain, step = table[occupancy], costs.draft_step(occupancy)
        gains, times, gain = [0.0], [plain], 0.0
        for depth, survival in enumerate(self._survivals, 1):
            gain += survival
            gains.append(gain)
            times.append(table[occupancy * (1 + depth)] + depth * step)
        rate = max(occupancy * (1 + gain) / time for gain, time in zip(gains, times, strict=True))
        share = rate / occupancy
        return rate, max(gain - share * (t - plain) for gain, t in zip(gains[1:], times[1:], strict=True))
