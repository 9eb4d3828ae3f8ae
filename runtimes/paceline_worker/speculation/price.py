"""What the time of one step is worth, in tokens, and which drafted tokens are worth theirs.

With the long-run rate as the price of a second (the theory is in `controller`), everything here is a number of tokens:
what a token that is accepted with some probability brings, and what drafting and verifying it takes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

_AHEAD = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 48, 64)

Bid = tuple[float, int, int]
"""One token of the batch's drafts: its probability to be accepted, negated so that the best sorts first; the draft
steps it still takes to have it; the seat it is for."""


class Price:
    """The prices of one step.

    `verify[n]`: seconds to verify n tokens in all, `occupancy` of them the sequences' own. `rate`: tokens per second.
    `draft_step`: seconds. `run`: by what factor the chance of a drafted token falls with each one after it.
    """

    def __init__(self, verify: Sequence[float], occupancy: int, rate: float, draft_step: float, run: float) -> None:
        self._verify = verify
        self._occupancy = occupancy
        self.rate = rate
        self.plain = verify[occupancy]
        """Seconds of a step without drafted tokens."""
        self.step = rate * draft_step
        """Tokens that a draft step must gain."""
        self._growth = _growth(min(round(run * 50), 49))

    def seconds(self, n: int) -> float:
        """What verifying n tokens in all takes."""
        return self._verify[n]

    def of(self, n: int) -> float:
        """Tokens that must be gained for n tokens to be verified in all."""
        return self.rate * (self._verify[n] - self.plain)

    def worth(self, survivals: Sequence[float]) -> float:
        """Tokens that the most valuable beginning of a draft gains, alone in the batch; 0 if none pays.

        `survivals`: for each token the probability that it and all before it are accepted.
        """
        table, rate, plain = self._verify, self.rate, self.plain
        best = gain = 0.0
        for n, survival in enumerate(survivals, self._occupancy + 1):
            gain += survival
            value = gain - rate * (table[n] - plain)
            if value > best:
                best = value
        return best

    def goes_on(self, n: int, expected: float, room: int, depth: float) -> bool:
        """Whether some number of tokens more pays for itself and for `depth`, by which the draft is under its price.

        `n`: tokens to verify so far; `expected`: the probability that the next will be accepted; `room`: most of them.
        """
        table, rate, step = self._verify, self.rate, self.step
        here = table[n]
        for ahead, growth in self._growth:
            if ahead > room:
                return False
            if expected * growth - ahead * step - rate * (table[n + ahead] - here) > depth:
                return True
        return False

    def take(self, bids: Sequence[Bid], n: int, depth: float = 0.0) -> int:
        """How many of the sorted `bids` to take, over n tokens that are verified anyway, to gain the most.

        None are taken that do not gain more than `depth`. Draft steps are shared: all seats draft in each.
        """
        table, rate = self._verify, self.rate
        best, taken, gain, steps = depth, 0, 0.0, 0
        for m, (bid, at, _) in enumerate(bids, 1):
            gain -= bid
            steps = max(steps, at)
            value = gain - steps * self.step - rate * (table[n + m] - table[n])
            if value > best:
                best, taken = value, m
        return taken


@cache
def _growth(fiftieths: int) -> tuple[tuple[int, float], ...]:
    """(m, 1 + a + ... + a^(m-1)) for the rate a = fiftieths / 50: what m tokens gain as a multiple of the first."""
    a = fiftieths / 50
    return tuple((m, (1 - a**m) / (1 - a)) for m in _AHEAD)
