"""What the time of one step is worth, in tokens, and which drafted tokens are worth theirs.

With the long-run rate as the price of a second (the theory is in `controller`), everything here is a number of tokens:
what a token that is accepted with some probability brings, and what drafting and verifying it takes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

_AHEAD = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 48, 64)


class Price:
    """The prices of one step.

    `verify[n]`: seconds of a pass over n rows. `plain_passes`: the rows of each pass of a step without drafted tokens,
    which are more than the `occupancy` sequences where lanes between them are filled up. `rate`: tokens per second.
    `draft_step`: seconds. `run`: by what factor the chance of a drafted token falls with each one after it.
    """

    def __init__(
        self,
        verify: Sequence[float],
        plain_passes: Sequence[int],
        occupancy: int,
        rate: float,
        draft_step: float,
        run: float,
    ) -> None:
        self._verify = verify
        self._plain_passes = plain_passes
        self._occupancy = occupancy
        self.rate = rate
        self._levels = levels(verify, plain_passes)
        self.plain = self._levels[0]
        """Seconds of a step without drafted tokens."""
        self.step = rate * draft_step
        """Tokens that a draft step, of all sequences, must gain."""
        self._growth = _growth(min(round(run * 50), 49))

    def level(self, depth: int) -> float:
        """Tokens that must be gained for every sequence to verify so many drafted tokens."""
        return self.rate * (self._levels[depth] - self.plain)

    def worth(self, survivals: Sequence[float]) -> float:
        """Tokens that the most valuable beginning of a draft gains if all sequences verify as many; 0 if none pays.

        `survivals`: for each token the probability that it and all before it are accepted.
        """
        table, plain = self._levels, self.plain
        share = self.rate / self._occupancy
        best = gain = 0.0
        for depth, survival in enumerate(survivals, 1):
            gain += survival
            value = gain - share * (table[depth] - plain)
            if value > best:
                best = value
        return best

    def alone(self, survivals: Sequence[float]) -> int:
        """How many tokens of a draft are worth a pass of their own beside the others'; 0 when none are."""
        best = gain = 0.0
        length = 0
        for rows, survival in enumerate(survivals, 1):
            gain += survival
            value = gain - self.rate * self._verify[rows]
            if value > best:
                best, length = value, rows
        return length

    def passes(self, drafted: Sequence[int]) -> tuple[int, ...]:
        """The rows of each pass that verifies so many drafted tokens of each sequence.

        Engines compute sequences together that have equally many rows. Others are filled up to the longest where that
        is cheaper (one pass), or what is longer than the shortest is computed apart.
        """
        longest, shortest = 1 + max(drafted), 1 + min(drafted)
        even = tuple(rows * longest for rows in self._plain_passes)
        if longest == shortest:
            return even
        apart = (
            *(rows * shortest for rows in self._plain_passes),
            *(1 + n - shortest for n in drafted if 1 + n > shortest),
        )
        return even if self.seconds(even) <= self.seconds(apart) else apart

    def seconds(self, passes: Sequence[int]) -> float:
        """What passes of so many rows take."""
        return sum(self._verify[rows] for rows in passes)

    def goes_on(self, depth: int, expected: float, room: int, short: float) -> bool:
        """Whether some number of draft steps more pays for itself and for `short`, by which the drafts are too dear.

        `depth`: tokens drafted for each sequence so far; `expected`: the sum of the probabilities that the next ones
        will be accepted; `room`: most of them for each.
        """
        table, rate, step = self._levels, self.rate, self.step
        here = table[depth]
        for ahead, growth in self._growth:
            if ahead > room:
                return False
            if expected * growth - ahead * step - rate * (table[depth + ahead] - here) > short:
                return True
        return False


def levels(verify: Sequence[float], plain_passes: Sequence[int]) -> list[float]:
    """The seconds of a step by how many drafted tokens all sequences verify, as far as `verify` goes."""
    return [sum(parts) for parts in zip(*(verify[rows::rows] for rows in plain_passes), strict=False)]


@cache
def _growth(fiftieths: int) -> tuple[tuple[int, float], ...]:
    """(m, 1 + a + ... + a^(m-1)) for the rate a = fiftieths / 50: what m tokens gain as a multiple of the first."""
    a = fiftieths / 50
    return tuple((m, (1 - a**m) / (1 - a)) for m in _AHEAD)
