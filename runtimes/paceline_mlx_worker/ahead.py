"""The next step of greedy generations, begun before the tokens of this one have been read.

While the host reads a token, sends it and comes back for the next, MLX would have nothing to do. So the next pass is
built from the token that is still being computed, as mlx_lm's `generate_step` does. Here the next step may also bring
a draft, somebody's prompt or another number of generations: then the pass was in vain. It is begun only while nearly
all of them are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

_WEIGHT = 1 / 16
"""Of the last step in the share of steps that were foreseen."""
_LEAST = 0.9
"""Share of foreseen steps from which on they are begun ahead: a pass in vain costs as much as many save."""

Places = list[tuple[int, int]]
"""Lanes, and the position of a token in each."""


class Ahead:
    """Foresees that each generation goes on with its likeliest token, and nothing else happens."""

    def __init__(self, run: Callable[[Places, Any], Any]) -> None:
        """`run` builds the pass over a token of each place, array of shape (places, 1); returns the logits."""
        self._run = run
        self._foreseen = 1.0
        self._places: Places | None = None
        self._tokens: list[int] = []
        self._logits: Any = None

    def likeliest(self, places: Places, logits: Any) -> list[int]:
        """The likeliest token of each row of `logits`, shape (places, n_vocab); `places` are where they would go."""
        found = mx.argmax(logits, axis=-1)
        self._places = places
        if self._foreseen >= _LEAST:
            mx.async_eval(found)
            self._logits = self._run(places, found[:, None])
            mx.async_eval(self._logits)
        tokens: list[int] = found.tolist()
        self._tokens = tokens
        return tokens

    def take(self, places: Places, tokens: list[int]) -> Any:
        """The logits, shape (places, 1, n_vocab), of the step that is wanted now; None when it was not begun."""
        foreseen = (places, tokens) == (self._places, self._tokens)
        logits = self._logits if foreseen else None
        self._judge(foreseen)
        return logits

    def forget(self) -> None:
        """What the sequences hold is about to change."""
        self._judge(False)

    def _judge(self, foreseen: bool) -> None:
        if self._places is not None:
            self._foreseen += _WEIGHT * (foreseen - self._foreseen)
        self._places, self._tokens, self._logits = None, [], None
