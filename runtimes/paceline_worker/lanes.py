"""The sequences of one context: which tokens' state each holds, and which generation may use it.

A lane keeps its tokens when its generation ends, so that the next turn of a conversation finds them. A new generation
takes the free lane with the longest common beginning, or copies a much longer one from another lane.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

_WORTH_COPYING = 64
"""Tokens that another lane must know more for its state to be copied, which moves the whole lane's cells."""


class Batch(Protocol):
    """Tokens of several lanes that are computed together."""

    @property
    def size(self) -> int: ...

    @property
    def left(self) -> int:
        """Tokens that still fit."""

    def clear(self) -> None: ...

    def add(self, lane: int, tokens: Sequence[int], start: int, /, *, outputs: int) -> int:
        """Append `tokens` of `lane` from position `start` on; returns the index of the first of the last `outputs`."""


class Context(Protocol):
    """What lanes ask of an engine's context, which holds the state of each."""

    @property
    def batch(self) -> Batch: ...

    def decode(self) -> None:
        """Compute the batch."""

    def keep(self, lane: int, length: int, /) -> bool:
        """Forget a lane from position `length` on; False when its memory cannot forget a part."""

    def shift(self, lane: int, start: int, count: int, /) -> bool:
        """Forget `count` positions from `start` on and move what follows to their place; False when that is impossible
        and nothing was done."""

    def forget(self, lane: int, /) -> None: ...

    def copy(self, source: int, target: int, /) -> None:
        """Give `target`, which is empty, all that `source` holds."""

    def close(self) -> None: ...


class Model(Protocol):
    def close(self) -> None: ...


ContextT = TypeVar("ContextT", bound=Context)
ModelT = TypeVar("ModelT", bound=Model)


class Lanes(Generic[ContextT, ModelT]):
    """A model's context, divided into lanes."""

    def __init__(self, context: ContextT, model: ModelT, count: int, outputs: int) -> None:
        self.context = context
        self.model = model
        self.outputs = outputs
        """Most tokens of one batch that can have logits."""
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._sound: list[int | None] = [None] * count
        """Up to where a lane's state is what reading its tokens anew would give; None: all of it."""
        self._busy = [False] * count
        self._used = [0] * count
        self._clock = itertools.count(1)

    @property
    def left(self) -> int:
        """Tokens that still fit the batch."""
        return self.context.batch.left

    def take(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Choose a free lane for a prompt and make it hold as much of its beginning as is known.

        Returns the lane and how many tokens are there, at most all but the last.
        """
        known = [self._known(lane, tokens) for lane in range(len(self._tokens))]
        free = [lane for lane, busy in enumerate(self._busy) if not busy]
        # The longest beginning; among equals an empty lane, whose tokens nobody can miss, then the longest unused.
        lane = min(free, key=lambda i: (-known[i], bool(self._tokens[i]), self._used[i]))
        best = max(range(len(known)), key=known.__getitem__)
        if known[best] - known[lane] >= _WORTH_COPYING:
            self._copy(best, lane)
        self._busy[lane] = True
        return lane, self.reuse(lane, tokens)

    def release(self, lane: int) -> None:
        """The generation on a lane ended; its tokens stay, as far as another could use them."""
        if (sound := self._sound[lane]) is not None:
            self.truncate(lane, sound)
        self._busy[lane] = False
        self._used[lane] = next(self._clock)

    def reuse(self, lane: int, tokens: Sequence[int]) -> int:
        """Forget what does not begin `tokens`; returns how many of them, but for the last, remain."""
        self.truncate(lane, self._known(lane, tokens))
        return len(self._tokens[lane])

    def length(self, lane: int) -> int:
        """How many tokens the lane holds."""
        return len(self._tokens[lane])

    def missing(self, lane: int, tokens: Sequence[int]) -> Sequence[int]:
        """What of `tokens` the lane does not hold yet."""
        return tokens[len(self._tokens[lane]) :]

    def truncate(self, lane: int, length: int) -> None:
        """Forget what follows the first `length` tokens; a memory that cannot forget a part forgets all."""
        held = self._tokens[lane]
        if length < len(held):
            if self.context.keep(lane, length):
                del held[length:]
            else:
                self._clear(lane)
        if (sound := self._sound[lane]) is not None and length <= sound:
            self._sound[lane] = None

    def cut(self, lane: int, start: int, count: int) -> None:
        """Drop `count` tokens from `start` on; what follows them stays where the memory can move it, or is forgotten.

        What stays was computed with the dropped tokens in sight, so it begins no other generation.
        """
        held = self._tokens[lane]
        if len(held) > start + count and self.context.shift(lane, start, count):
            del held[start : start + count]
            sound = self._sound[lane]
            self._sound[lane] = start if sound is None else min(sound, start)
        else:
            self.truncate(lane, start)

    def hold(self, lane: int, tokens: Sequence[int]) -> None:
        """Take note that the state of `tokens`, and of no more, was put into a lane from elsewhere."""
        self._tokens[lane], self._sound[lane] = list(tokens), None

    def begin(self) -> None:
        """Start a batch."""
        self.context.batch.clear()

    def add(self, lane: int, tokens: Sequence[int], *, outputs: int) -> int:
        """Put the next tokens of a lane into the batch; returns the index of the first that gets logits."""
        index = self.context.batch.add(lane, tokens, len(self._tokens[lane]), outputs=outputs)
        self._tokens[lane].extend(tokens)
        return index

    def decode(self) -> None:
        if self.context.batch.size:
            self.context.decode()

    def close(self) -> None:
        self.context.close()
        self.model.close()

    def _known(self, lane: int, tokens: Sequence[int]) -> int:
        """How much of the beginning of `tokens` the lane's state can be made to hold by forgetting."""
        return _common(self._tokens[lane][: self._sound[lane]], tokens)

    def _copy(self, source: int, target: int) -> None:
        self._clear(target)
        self.context.copy(source, target)
        self._tokens[target], self._sound[target] = list(self._tokens[source]), self._sound[source]

    def _clear(self, lane: int) -> None:
        self.context.forget(lane)
        self._tokens[lane], self._sound[lane] = [], None


def _common(have: Sequence[int], want: Sequence[int]) -> int:
    """Length of the common beginning, leaving out the last token of `want`, which must be computed for its logits."""
    for i, (a, b) in enumerate(zip(have, want[:-1], strict=False)):
        if a != b:
            return i
    return min(len(have), len(want) - 1)
