"""One decode step of sequences for which nothing will be proposed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline_worker.speculation.account import Account
    from paceline_worker.speculation.costs import Costs
    from paceline_worker.speculation.pace import Pace

MOST_SURPRISE = 3.0
"""A step that took so many times what it usually takes was held up by something else."""


class Plain:
    """As a `Round` in which nobody drafts, without its work: deciding that again every step costs a small model more
    than speculation may lose."""

    rows = 0

    def __init__(self, costs: Costs, seats: int, resting: tuple[Pace, Account] | None = None) -> None:
        """`resting`: where the sequences have drafters, of which none is worth asking."""
        self._costs = costs
        self._seats = seats
        self._resting = resting

    def proposals(self) -> list[list[int]]:
        return [[] for _ in range(self._seats)]

    def looked_up(self, seat: int = 0) -> bool:
        return False

    def settle(
        self,
        emitted: Sequence[Sequence[int]],
        draft_seconds: float,
        verify_seconds: float,
        passes: Sequence[int] | None = None,
    ) -> None:
        """Learn what the step took, as `Round.settle` does."""
        passes = passes or (self._seats,)
        usual = 0.0 if self._resting is None else sum(map(self._costs.verify.at, passes))
        self._costs.observe_verify(verify_seconds, passes)
        if self._resting is None:
            return
        pace, account = self._resting
        pace.stepped(0, extended=False, probing=False)
        if 0.0 < verify_seconds < math.inf:
            tokens = sum(map(len, emitted))
            pace.add(tokens, min(verify_seconds, MOST_SURPRISE * usual))
            account.earn(tokens)
