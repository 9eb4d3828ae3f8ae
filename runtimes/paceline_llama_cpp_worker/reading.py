"""Long prompts on the CPU, read in a context of their own.

Decoding wants values cached in BF16, reading a prompt wants them in F16: only then does llama.cpp's attention compute
tiles of 64 tokens, which is faster in long contexts (docs/decisions/batches-and-bits.md). So a long prompt is read in a
context with F16 values, which lasts as long as the reading, and its state is handed over to the one that decodes. The
last token is read there too, so that the first of the answer waits for no further batch. A row of a tile has the same
bits whatever else is in it, so an answer does not depend on what was computed beside it. A prompt that comes after a
very long one must not wait for all of it, nor be read elsewhere, which would change its bits: when it is much shorter,
it gets a second such context.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from paceline_llama_cpp_worker import state
from paceline_llama_cpp_worker.binding import Context
from paceline_worker.protocol import Fault

if TYPE_CHECKING:
    from paceline_llama_cpp_worker.binding import Model
    from paceline_llama_cpp_worker.options import ContextOptions

TILE = 64
"""llama.cpp's attention computes tiles for so many tokens of one sequence in a batch and more
(`ggml_fa_tile_config::Q`); one that is not full is filled up, which changes nothing in the others."""

WORTH_READING = 4 * TILE
"""Fewer tokens are read where they are decoded: making a context and handing over would take what tiles gain."""

_LEAST_ROOM = 2 * TILE
"""Of a batch: a prompt can be cut into such in equal parts that all fill a tile."""

_PAD = 256
"""llama.cpp rounds the size of a context up to a multiple of it."""


_MUCH_SHORTER = 4
"""A prompt that is so many times shorter than what the one under way has left need not wait for it."""


@dataclass
class _Reading:
    """A prompt under way."""

    context: Context
    length: int
    done: int
    saved: int = 0
    """Tokens of its shares that were too few to fill a tile, for a later step."""

    @property
    def left(self) -> int:
        return self.length - self.done


class Reader:
    """Reads long prompts for a context that decodes: one at a time, and one that is much shorter beside it."""

    def __init__(
        self, context: Context, model: Model, *, options: ContextOptions, batch: int, threads: int | None
    ) -> None:
        self._target, self._model = context, model
        self._options, self._batch, self._threads = replace(options, type_v=state.F16), batch, threads
        by_choice = options.type_v is not None or options.type_k is not None
        self._works = (
            not by_choice and context.type_v == state.BF16 and model.caches_all_tokens and batch >= _LEAST_ROOM
        )
        self._readings: dict[int, _Reading] = {}

    def progress(self, lane: int) -> int | None:
        """How many tokens of the prompt of `lane` have their state; None if it is not under way."""
        reading = self._readings.get(lane)
        return None if reading is None else reading.done

    def takes(self, tokens: Sequence[int], held: int) -> bool:
        """Whether a prompt of which the context that decodes holds `held` tokens should be read here, now or later.

        Not while that context waits for a batch to change its cells.
        """
        return self._works and len(tokens) - held >= WORTH_READING and not self._target.is_changing

    def begin(self, lane: int, tokens: Sequence[int], held: int) -> bool:
        """Take a prompt on, whose first `held` tokens the context that decodes holds; False when that cannot be now."""
        if not self._is_free_for(len(tokens)):
            return False
        try:
            self._readings[lane] = _Reading(self._begun(lane, held, len(tokens)), len(tokens), held)
        except (Fault, state.Unreadable) as error:
            self._give_up(error)
        return self._works

    def read(self, lane: int, tokens: Sequence[int], room: int, begin: Callable[[Context, int], None]) -> int | None:
        """Compute the next tokens, about `room`, of a prompt that is under way.

        Returns None until all were read and handed over, and then how many tokens the lane holds, none if that failed.
        Else `begin` is called before with the output of the last.
        """
        reading = self._readings[lane]
        if len(self._readings) > 1 and room + reading.saved < min(_LEAST_ROOM, reading.left):
            reading.saved += room  # two that are filled up to tiles would hold up running generations twice as long
            return None
        context = reading.context
        count = _equal_part(reading.left, max(room + reading.saved, _LEAST_ROOM))
        reading.saved = 0
        context.batch.clear()
        last = context.batch.add(0, tokens[reading.done : reading.done + count], reading.done, outputs=1)
        context.decode()
        reading.done += count
        if reading.left:
            return None
        held = self._hand_over(reading, lane)
        if held:
            begin(context, last)
        self.forget(lane)
        return held

    def forget(self, lane: int) -> None:
        """The prompt of `lane`, if it is under way, is no longer wanted."""
        reading = self._readings.pop(lane, None)
        if reading is not None:
            reading.context.close()

    def close(self) -> None:
        """Forget the prompts under way."""
        for lane in list(self._readings):
            self.forget(lane)

    def _is_free_for(self, length: int) -> bool:
        """Whether a prompt of so many tokens can be taken on now."""
        if not self._readings:
            return True
        (first, *others) = self._readings.values()
        return not others and length * _MUCH_SHORTER <= first.left

    def _hand_over(self, reading: _Reading, lane: int) -> int:
        """Give the state to the context that decodes; returns how many tokens that holds now, none if it fails."""
        try:
            data = state.with_values(reading.context.state(0), state.BF16, streams=self._target.n_seq)
            if not self._target.restore(lane, data):
                raise state.Unreadable("llama.cpp did not take it over")
        except state.Unreadable as error:
            self._target.forget(lane)
            self._give_up(error)
            return 0
        return reading.done

    def _begun(self, lane: int, held: int, end: int) -> Context:
        context = Context(
            self._model,
            n_ctx=-(-end // _PAD) * _PAD,
            n_seq=1,
            n_batch=self._batch,
            n_outputs=1,
            threads=self._threads,
            options=self._options,
        )
        try:
            if held:
                begun = state.with_values(self._target.state(lane), state.F16, streams=1)
                if not context.restore(0, begun):
                    raise state.Unreadable("llama.cpp did not take it back")
        except BaseException:
            context.close()
            raise
        return context

    def _give_up(self, error: Exception) -> None:
        """From now on prompts are read where they are decoded, more slowly."""
        self._works = False
        sys.stderr.write(f"long prompts are no longer read in a context of their own: {error}\n")


def _equal_part(left: int, room: int) -> int:
    """How many of `left` tokens to read now, to read them in as few batches as `room` allows, all about as large: a
    small last one would compute its tokens at a fraction of the speed."""
    return -(-left // -(-left // room))
