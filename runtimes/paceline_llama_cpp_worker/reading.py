"""Long prompts on the CPU, read in a context of their own.

Decoding wants values cached in BF16, reading a prompt wants them in F16: only then does llama.cpp's attention compute
tiles of 64 tokens, which is faster in long contexts (docs/decisions/batches-and-bits.md). So a long prompt is read in a
context with F16 values, which lasts as long as the reading, and its state is handed over to the one that decodes. The
last token is read there too, so that the first of the answer waits for no further batch. A row of a tile has the same
bits whatever else is in it, so an answer does not depend on what was computed beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
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


class Reader:
    """Reads one long prompt at a time for a context that decodes."""

    def __init__(
        self, context: Context, model: Model, *, options: ContextOptions, batch: int, threads: int | None
    ) -> None:
        self._target, self._model = context, model
        self._options, self._batch, self._threads = replace(options, type_v=state.F16), batch, threads
        by_choice = options.type_v is not None or options.type_k is not None
        self._works = (
            not by_choice and context.type_v == state.BF16 and model.caches_all_tokens and batch >= _LEAST_ROOM
        )
        self._context: Context | None = None
        self._lane: int | None = None
        self._done = 0

    def progress(self, lane: int) -> int | None:
        """How many tokens of the prompt of `lane` have their state; None if it is not under way."""
        return self._done if self._context is not None and self._lane == lane else None

    def takes(self, tokens: Sequence[int], held: int) -> bool:
        """Whether a prompt of which the context that decodes holds `held` tokens should be read here, now or later.

        Not while that context waits for a batch to change its cells.
        """
        return self._works and len(tokens) - held >= WORTH_READING and not self._target.is_changing

    def read(
        self, lane: int, tokens: Sequence[int], held: int, room: int, begin: Callable[[Context, int], None]
    ) -> int:
        """Compute a prompt's next tokens, about `room`, if no other prompt is under way.

        Returns how many tokens the lane holds now: `held` until all were read and handed over. Then `begin` is called
        with the output of the last.
        """
        if self.progress(lane) is None and not self._begin(lane, tokens, held):
            return held
        context = self._context
        assert context is not None
        count = _equal_part(len(tokens) - self._done, max(room, _LEAST_ROOM))
        context.batch.clear()
        last = context.batch.add(0, tokens[self._done : self._done + count], self._done, outputs=1)
        context.decode()
        self._done += count
        if self._done < len(tokens):
            return held
        held = self._hand_over(context, lane)
        if held:
            begin(context, last)
        self.close()
        return held

    def forget(self, lane: int) -> None:
        """The prompt of `lane`, if it is under way, is no longer wanted."""
        if self.progress(lane) is not None:
            self.close()

    def close(self) -> None:
        """Forget the prompt under way."""
        if self._context is not None:
            self._context.close()
            self._context = None

    def _begin(self, lane: int, tokens: Sequence[int], held: int) -> bool:
        """Take a prompt on; False when that cannot be done now."""
        if self._context is not None or self._target.is_changing:
            return False
        self._done, self._lane = held, lane
        try:
            self._context = self._begun(held, len(tokens))
        except (Fault, state.Unreadable) as error:
            self._give_up(error)
        return self._works

    def _hand_over(self, context: Context, lane: int) -> int:
        """Give the state to the context that decodes; returns how many tokens that holds now, none if it fails."""
        held = self._done
        try:
            data = state.with_values(context.state(0), state.BF16, streams=self._target.n_seq)
            if not self._target.restore(lane, data):
                raise state.Unreadable("llama.cpp did not take it over")
        except state.Unreadable as error:
            self._target.forget(lane)
            held = 0
            self._give_up(error)
        return held

    def _begun(self, held: int, end: int) -> Context:
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
                begun = state.with_values(self._target.state(self._lane or 0), state.F16, streams=1)
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
