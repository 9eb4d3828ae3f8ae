"""The sequences of one context: which tokens' state each holds, and which generation may use it.

A lane keeps its tokens when its generation ends, so that the next turn of a conversation finds them. A new generation
goes on where its beginning is almost all that a free lane holds. Otherwise it takes a lane that has nothing to lose, or
the longest unused, and copies there what another knows: the few tokens that every chat begins with must not pull each
new conversation onto the lane of the one before. What a lane loses by that goes to a prompt cache, and comes back when
a prompt begins like it.

A recurrent state holds all that was read and cannot be taken back by a token. Such states are saved on the way, for
drafts that may be refused and for the next turn of a conversation, and a lane goes back to the latest that fits
(docs/decisions/states-that-cannot-forget.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeAlias

from paceline_worker.passes import evened, passes
from paceline_worker.primitives import ContextT, ModelT
from paceline_worker.prompt_cache import Entry, PromptCache

_WORTH_COPYING = 64
"""Tokens that another lane must know more for its state to be copied, which moves the whole lane's cells."""

_WORTH_MOVING = 4
"""Tokens that another lane must know more for their state to be moved, where that lies in the machine's memory."""
_MOVED_FOR_ONE = 16
"""So many tokens' state is moved there in far less time than one takes to be read."""

_LITTLE = 32
_PART = 16
"""What may be lost of a lane that is used again: so few tokens, or one of so many of those that go on being used."""

_BEFORE_THE_END = 8
"""Tokens before a prompt's end where its state is saved: the next turn may write its last few tokens otherwise."""

_SAVED = 3
"""States that a lane keeps for later generations."""

_UNNOTICED = 256
"""llama.cpp rounds the cells that attention looks at up to a multiple of it."""

_Saved: TypeAlias = tuple[int, Any]
"""How many tokens the lane held, and its state then."""


class Lanes(Generic[ContextT, ModelT]):
    """A model's context, divided into lanes."""

    def __init__(
        self, context: ContextT, model: ModelT, count: int, outputs: int, cache: PromptCache | None = None
    ) -> None:
        """`cache`: where to keep what lanes lose; it may be shared with another model's lanes."""
        self.context = context
        self.model = model
        self.cache = PromptCache(0) if cache is None else cache
        self.outputs = outputs
        """Most tokens of one batch that can have logits."""
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._sound: list[int | None] = [None] * count
        """Up to where a lane's state is what reading its tokens anew would give; None: all of it."""
        self._saved: list[list[_Saved]] = [[] for _ in range(count)]
        self._marks: list[_Saved | None] = [None] * count
        self._busy = [False] * count
        self._used = [0] * count
        self._filled: dict[int, int] = {}
        """How many tokens each lane holds that was filled up in this batch, without what fills it."""
        self._clock = itertools.count(1)

    @property
    def count(self) -> int:
        return len(self._tokens)

    @property
    def left(self) -> int:
        """Tokens that still fit the batch."""
        return self.context.batch.left

    def take(self, tokens: Sequence[int]) -> tuple[int, int]:
        """Choose a free lane for a prompt and make it hold as much of its beginning as is known.

        Returns the lane and how many tokens are there, at most all but the last.
        """
        known = self._all_known(tokens)
        lane = self._choose(known, max(*known, self._kept(tokens)[0]))
        held = self._prepare(lane, tokens, known)
        self._busy[lane] = True
        return lane, held

    def prepare(self, lane: int, tokens: Sequence[int]) -> int:
        """Make a lane hold as much of the beginning of `tokens` as is known; returns how many, at most all but the
        last."""
        return self._prepare(lane, tokens, self._all_known(tokens))

    def release(self, lane: int) -> None:
        """The generation on a lane ended; its tokens stay, as far as another could use them."""
        if (sound := self._sound[lane]) is not None:
            self.truncate(lane, sound)
        self._busy[lane] = False
        self._used[lane] = next(self._clock)

    def length(self, lane: int) -> int:
        """How many tokens the lane holds."""
        return len(self._tokens[lane])

    def missing(self, lane: int, tokens: Sequence[int]) -> Sequence[int]:
        """What of `tokens` the lane does not hold yet."""
        return tokens[len(self._tokens[lane]) :]

    def mark(self, lane: int) -> None:
        """What is read next may have to be forgotten again."""
        if not self.context.can_roll_back:
            self._marks[lane] = self._saving(lane)

    def remember(self, lane: int) -> None:
        """Another generation may begin as this one does up to here."""
        self._saved[lane] = [*self._saved[lane], self._saving(lane)][-_SAVED:]

    def resting_point(self, prompt: int) -> int | None:
        """After how many tokens of a prompt of so many its state is to be remembered; None if it need not be."""
        return None if self.context.can_roll_back or prompt <= _BEFORE_THE_END else prompt - _BEFORE_THE_END

    def truncate(self, lane: int, length: int) -> None:
        """Forget what follows the first `length` tokens; a memory that cannot forget just that forgets more."""
        held = self._tokens[lane]
        if length < len(held) and not self.context.keep(lane, length):
            length = self._go_back(lane, length)
        del held[length:]
        if (sound := self._sound[lane]) is not None and length <= sound:
            self._sound[lane] = None
        self._forget_states(lane, length)

    def cut(self, lane: int, start: int, count: int) -> None:
        """Drop `count` tokens from `start` on; what follows them stays where the memory can move it, or is forgotten.

        What stays was computed with the dropped tokens in sight, so it begins no other generation.
        """
        held = self._tokens[lane]
        if len(held) > start + count and self.context.shift(lane, start, count):
            del held[start : start + count]
            sound = self._sound[lane]
            self._sound[lane] = start if sound is None else min(sound, start)
            self._forget_states(lane, start)
        else:
            self.truncate(lane, start)

    def hold(self, lane: int, tokens: Sequence[int]) -> None:
        """Take note that the state of `tokens`, and of no more, was put into a lane from elsewhere."""
        self._tokens[lane], self._sound[lane] = list(tokens), None

    def begin(self) -> None:
        """Start a batch."""
        self.context.batch.clear()

    def evened(self, rows: Mapping[int, int], longest: int, seconds: Callable[[int], float]) -> dict[int, int]:
        """How many rows each lane should have in a batch, `rows` of them to be computed, for the least time in all.

        `longest`: tokens that a lane can hold; `seconds`: of a pass over so many rows. What is more than in `rows` is
        for `fill`. Lanes that hold much more than those to be computed are left alone: attention, for all, looks as far
        as the longest of a pass does.
        """
        if not self.context.wants_even or len(passes(rows)) < 2:
            return dict(rows)
        held = [len(tokens) for tokens in self._tokens]
        far = max(_UNNOTICED, *(held[lane] for lane in rows))
        rooms = {
            lane: longest - held[lane] for lane in range(min(rows), max(rows) + 1) if lane in rows or held[lane] < far
        }
        return evened(rows, rooms, self.left, seconds)

    def widened(self, rows: Mapping[int, int], longest: int, best: Callable[[int, int, int], int]) -> dict[int, int]:
        """How many rows each lane of a batch that is computed in one pass should have, so that the engine computes it
        fastest: the more that `best` says of the pass's rows, by how many they can grow at a time, and to how many."""
        made = passes(rows) if self.context.wants_even else ()
        if len(made) != 1:
            return dict(rows)
        lanes = len(rows)
        room = min(longest - len(self._tokens[lane]) for lane in rows)
        wanted = best(made[0], lanes, min(self.left, lanes * room))
        return dict.fromkeys(rows, wanted // lanes) if wanted > made[0] else dict(rows)

    def add(self, lane: int, tokens: Sequence[int], *, outputs: int) -> int:
        """Put the next tokens of a lane into the batch; returns the index of the first that gets logits."""
        index = self.context.batch.add(lane, tokens, len(self._tokens[lane]), outputs=outputs)
        self._tokens[lane].extend(tokens)
        return index

    def fill(self, lane: int, count: int) -> None:
        """Put rows into the batch that mean nothing, after the lane's own; they are forgotten when it is computed."""
        held = self._tokens[lane]
        self._filled[lane] = len(held)
        self.add(lane, [held[-1] if held else 0] * count, outputs=0)

    def decode(self) -> None:
        """Compute the batch."""
        if self.context.batch.size:
            self.context.decode()
        for lane, length in self._filled.items():
            self.truncate(lane, length)
        self._filled.clear()

    def close(self) -> None:
        self.cache.forget(self)
        self.context.close()
        self.model.close()

    def _choose(self, known: Sequence[int], most: int) -> int:
        """The free lane for a prompt of which each lane knows so much, and some lane or the cache the `most`."""
        busy = [lane for lane, is_busy in enumerate(self._busy) if is_busy]
        free = [lane for lane, is_busy in enumerate(self._busy) if not is_busy]
        lost = [len(tokens) - there for tokens, there in zip(self._tokens, known, strict=True)]
        # Lanes that follow one another are computed in one pass.
        away = [min((abs(lane - other) for other in busy), default=0) for lane in range(len(known))]
        going_on = [i for i in free if known[i] and _is_little(lost[i], known[i])]
        lane = max(going_on, key=lambda i: (known[i], -lost[i], -away[i]), default=None)
        if lane is not None and most - known[lane] < _WORTH_COPYING:
            return lane
        return min(free, key=lambda i: (lost[i] > 0, self._used[i] if lost[i] else 0, away[i], i))

    def _prepare(self, lane: int, tokens: Sequence[int], known: Sequence[int]) -> int:
        best = max(range(len(known)), key=known.__getitem__)
        reached, entry = self._kept(tokens)
        if entry is not None and reached - known[best] >= _WORTH_COPYING:
            self._fetch(entry, reached, lane)
        else:
            if len(self._tokens[lane]) - known[lane] >= _WORTH_COPYING:
                self._put_away(lane)
            gained = known[best] - known[lane]
            if gained >= _WORTH_COPYING:
                self._copy(best, lane)
            elif self._is_worth_moving(best, gained):
                self._move(best, lane)
        self.truncate(lane, self._known(lane, tokens))
        return len(self._tokens[lane])

    def _all_known(self, tokens: Sequence[int]) -> list[int]:
        """How much of the beginning of `tokens` each lane knows."""
        return [self._known(lane, tokens) for lane in range(len(self._tokens))]

    def _known(self, lane: int, tokens: Sequence[int]) -> int:
        """How much of the beginning of `tokens` the lane's state can be made to hold by forgetting."""
        known = _common(self._tokens[lane][: self._sound[lane]], tokens)
        if self.context.can_roll_back or known == len(self._tokens[lane]):
            return known
        latest = self._latest(lane, known)
        return 0 if latest is None else latest[0]

    def _kept(self, tokens: Sequence[int]) -> tuple[int, Entry | None]:
        """How much of the beginning of `tokens` the cache knows, and where."""
        if self.context.is_changing:
            return 0, None
        return max(((self._reached(e, tokens), e) for e in self.cache.of(self)), key=_first, default=(0, None))

    def _reached(self, entry: Entry, tokens: Sequence[int]) -> int:
        known = _common(entry.tokens, tokens)
        if self.context.can_roll_back or known == len(entry.tokens):
            return known
        return max((length for length, _ in entry.saved if length <= known), default=0)

    def _put_away(self, lane: int) -> None:
        """Keep a lane's state in the cache before the lane loses it."""
        held = self._tokens[lane]
        elsewhere = any(other[: len(held)] == held for i, other in enumerate(self._tokens) if i != lane)
        if elsewhere or self._sound[lane] is not None or self.context.is_changing or not self.cache.limit:
            return
        saved = list(self._saved[lane])
        # What is saved on the way is a part of the state, or for some engines all of it.
        size = self.context.state_size(lane) * (1 + len(saved))
        self.cache.put(self, held, size, lambda: Entry(self, list(held), self.context.state(lane), saved, size))

    def _fetch(self, entry: Entry, reached: int, lane: int) -> None:
        """Give a lane what the cache holds, of which the first `reached` tokens will be used."""
        if _is_little(len(entry.tokens) - reached, reached):
            self.cache.remove(entry)
        else:
            self.cache.touch(entry)
        if len(self._tokens[lane]) >= _WORTH_COPYING:
            self._put_away(lane)
        self._clear(lane)
        if self.context.restore(lane, entry.state):
            self._tokens[lane], self._saved[lane] = list(entry.tokens), list(entry.saved)

    def _is_worth_moving(self, source: int, gained: int) -> bool:
        """Whether all that a lane holds should be moved for a few tokens of it, too few to copy its cells."""
        near = self.context.state_is_near and not self.context.is_changing
        return near and gained >= _WORTH_MOVING and len(self._tokens[source]) <= _MOVED_FOR_ONE * gained

    def _move(self, source: int, target: int) -> None:
        """As `_copy`, which takes as long for a few tokens as for a full lane."""
        self._clear(target)
        if self.context.restore(target, self.context.state(source)):
            self._take_over(source, target)

    def _copy(self, source: int, target: int) -> None:
        self._clear(target)
        self.context.copy(source, target)
        self._take_over(source, target)

    def _take_over(self, source: int, target: int) -> None:
        self._tokens[target], self._sound[target] = list(self._tokens[source]), self._sound[source]
        self._saved[target] = list(self._saved[source])

    def _clear(self, lane: int) -> None:
        self.context.forget(lane)
        self._tokens[lane], self._sound[lane] = [], None
        self._saved[lane], self._marks[lane] = [], None

    def _go_back(self, lane: int, length: int) -> int:
        """Return to the latest state with at most `length` tokens; returns how many it holds, 0 if there is none."""
        back = self._latest(lane, length)
        if back is not None:
            length, state = back
            self.context.go_back(lane, length, state)
            if self.context.keep(lane, length):
                return length
        self._clear(lane)
        return 0

    def _saving(self, lane: int) -> _Saved:
        return len(self._tokens[lane]), self.context.checkpoint(lane)

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


def _is_little(lost: int, used: int) -> bool:
    """Whether a lane may lose so many tokens to go on with so many others."""
    return lost <= min(used, max(_LITTLE, used // _PART))


def _first(pair: tuple[int, Any]) -> int:
    return pair[0]


def _common(have: Sequence[int], want: Sequence[int]) -> int:
    """Length of the common beginning, leaving out the last token of `want`, which must be computed for its logits."""
    for i, (a, b) in enumerate(zip(have, want[:-1], strict=False)):
        if a != b:
            return i
    return min(len(have), len(want) - 1)
