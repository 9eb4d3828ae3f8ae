"""One decode step of sequences for which nothing can propose."""

from __future__ import annotations

from collections.abc import Sequence

from paceline_worker.speculation.costs import Costs


class Plain:
    """As a `Round` in which nobody drafts, at the price of nothing: it learns what plain decoding takes, no more."""

    rows = 0

    def __init__(self, costs: Costs, seats: int) -> None:
        self._costs = costs
        self._seats = seats

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
        self._costs.observe_verify(verify_seconds, passes or (self._seats,))
