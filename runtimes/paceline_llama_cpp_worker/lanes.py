"""Lanes over llama.cpp contexts, also of models whose state cannot forget a part.

A recurrent state holds all that was read and cannot be taken back by a token. So states are saved on the way, for
drafts that may be refused and for the next turn of a conversation, and a lane goes back to the latest that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from paceline_llama_cpp_worker.binding import Context, Model, State
from paceline_worker import lanes

_BEFORE_THE_END = 8
"""Tokens before a prompt's end where its state is saved: the next turn may write its last few tokens otherwise."""

_SAVED = 3
"""States that a lane keeps for later generations."""

_Saved: TypeAlias = tuple[int, State]
"""How many tokens the lane held, and its state then."""


class Lanes(lanes.Lanes[Context, Model]):
    """A model's context, divided into lanes."""

    def __init__(self, context: Context, model: Model, count: int, outputs: int) -> None:
        super().__init__(context, model, count, outputs)
        self._saved: list[list[_Saved]] = [[] for _ in range(count)]
        self._marks: list[_Saved | None] = [None] * count

    def mark(self, lane: int) -> None:
        """What is read next may have to be forgotten again."""
        if not self.model.can_roll_back:
            self._marks[lane] = (len(self._tokens[lane]), self.context.checkpoint(lane))

    def remember(self, lane: int) -> None:
        """Another generation may begin as this one does up to here."""
        self._saved[lane] = [*self._saved[lane], (len(self._tokens[lane]), self.context.checkpoint(lane))][-_SAVED:]

    def resting_point(self, prompt: int) -> int | None:
        """After how many tokens of a prompt of so many its state is to be remembered; None if it need not be."""
        return None if self.model.can_roll_back or prompt <= _BEFORE_THE_END else prompt - _BEFORE_THE_END

    def truncate(self, lane: int, length: int) -> None:
        held = self._tokens[lane]
        if length < len(held) and not self.model.can_roll_back and not self.context.keep(lane, length):
            back = self._latest(lane, length)
            if back is None:
                self._clear(lane)
                return
            length, state = back
            self.context.go_back(lane, state)
        super().truncate(lane, length)
        self._forget_states(lane, length)

    def cut(self, lane: int, start: int, count: int) -> None:
        super().cut(lane, start, count)
        self._forget_states(lane, start)

    def _known(self, lane: int, tokens: Sequence[int]) -> int:
        known = super()._known(lane, tokens)
        if self.model.can_roll_back or known == len(self._tokens[lane]):
            return known
        latest = self._latest(lane, known)
        return 0 if latest is None else latest[0]

    def _latest(self, lane: int, length: int) -> _Saved | None:
        """The last state that was saved before a lane held more than `length` tokens."""
        mark = self._marks[lane]
        states = [state for state in (*self._saved[lane], *([mark] if mark else [])) if state[0] <= length]
        return max(states, key=lambda state: state[0], default=None)

    def _forget_states(self, lane: int, length: int) -> None:
        """Forget the states with more than `length` tokens, which are other tokens now."""
        self._saved[lane] = [state for state in self._saved[lane] if state[0] <= length]
        mark = self._marks[lane]
        if mark is not None and mark[0] > length:
            self._marks[lane] = None

    def _copy(self, source: int, target: int) -> None:
        super()._copy(source, target)
        self._saved[target] = list(self._saved[source])

    def _clear(self, lane: int) -> None:
        super()._clear(lane)
        self._saved[lane], self._marks[lane] = [], None
