"""Long prompts on the CPU, read in a context of their own.

Decoding wants values cached in BF16, reading a prompt wants them in F16: only then does llama.cpp's attention compute
tiles of 64 tokens, which is faster in long contexts (docs/decisions/batches-and-bits.md). So a long prompt is read in a
context with F16 values, which lasts as long as the reading, and its state is handed over to the one that decodes. Tiles
give the same bits however a prompt is cut into them, so an answer does not depend on what was computed beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from paceline_llama_cpp_worker import state
from paceline_llama_cpp_worker.binding import Context
from paceline_worker.protocol import Fault

if TYPE_CHECKING:
    from paceline_llama_cpp_worker.binding import Model
    from paceline_llama_cpp_worker.options import ContextOptions

TILE = 64
"""llama.cpp's attention computes tiles for so many tokens and more (`ggml_fa_tile_config::Q`)."""

WORTH_READING = 8 * TILE
"""Fewer tokens are read where they are decoded: making a context and handing over would take what tiles gain."""

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
        self._works = not by_choice and context.type_v == state.BF16 and model.caches_all_tokens
        self._context: Context | None = None
        self._lane: int | None = None
        self._end = 0
        self._done = 0

    def progress(self, lane: int) -> int | None:
        """How many tokens of the prompt of `lane` have their state; None if it is not under way."""
        return self._done if self._context is not None and self._lane == lane else None

    def takes(self, tokens: Sequence[int], held: int) -> bool:
        """Whether a prompt of which the context that decodes holds `held` tokens should be read here, now or later.

        Not while that context waits for a batch to change its cells.
        """
        return self._works and _tiled(tokens, held) >= WORTH_READING and not self._target.is_changing

    def read(self, lane: int, tokens: Sequence[int], held: int, room: int) -> int:
        """Compute a prompt's next tokens, about `room`, if no other prompt is under way.

        Returns how many tokens the lane holds now: `held` until all that is read here was handed over.
        """
        if self.progress(lane) is None and not self._begin(lane, tokens, held):
            return held
        context = self._context
        assert context is not None
        count = min(max(room // TILE, 1) * TILE, self._end - self._done)
        context.batch.clear()
        context.batch.add(0, tokens[self._done : self._done + count], self._done, outputs=1)
        context.decode()
        self._done += count
        return held if self._done < self._end else self._hand_over(context, lane)

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
        self._done, self._end, self._lane = held, held + _tiled(tokens, held), lane
        try:
            self._context = self._begun(held)
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
        self.close()
        return held

    def _begun(self, held: int) -> Context:
        context = Context(
            self._model,
            n_ctx=-(-self._end // _PAD) * _PAD,
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


def _tiled(tokens: Sequence[int], held: int) -> int:
    """How many tokens after the first `held` fill whole tiles, the last token, whose logits are wanted, left out."""
    return (len(tokens) - 1 - held) // TILE * TILE
