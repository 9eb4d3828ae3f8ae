"""What of a sequence stays when it outgrows its context: its beginning and its newest tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_STEPS = 4
"""What may be dropped is dropped in so many steps: at each, three quarters of it stay known."""


class Overflow(StrEnum):
    """What a request wants done when prompt and output need more than the context (names as LM Studio has them)."""

    STOP_AT_LIMIT = "stopAtLimit"
    TRUNCATE_MIDDLE = "truncateMiddle"
    ROLLING_WINDOW = "rollingWindow"


@dataclass(frozen=True)
class Window:
    """A context of `size` tokens whose first `keep` stay; after them the oldest go, `step` at a time."""

    size: int
    keep: int
    step: int

    @classmethod
    def of(cls, overflow: Overflow, size: int, keep: int) -> Window | None:
        """The window of a request whose first `keep` tokens are to stay, if it has one.

        A rolling window keeps no more than these, truncating the middle keeps at least a quarter of the context.
        """
        if overflow is Overflow.STOP_AT_LIMIT:
            return None
        if overflow is Overflow.TRUNCATE_MIDDLE:
            keep = max(keep, size // 4)
        step = max(1, (size - min(keep, size // 2)) // _STEPS)
        return cls(size, max(0, size - _STEPS * step), step)

    def excess(self, prompt: int, max_tokens: int | None) -> int:
        """How many tokens after the first `keep` a prompt of so many tokens loses; 0 if it fits.

        A step's worth of room for the answer is left, or less if `max_tokens` is. The amount is a multiple of the step:
        the next turn of the conversation loses mostly the same tokens, so that what was computed can be used again.
        """
        if prompt < self.size:
            return 0
        room = self.step if max_tokens is None else min(max_tokens, self.step)
        return -(-(prompt - (self.size - room)) // self.step) * self.step
