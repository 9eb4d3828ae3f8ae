"""The request's sampler chain on the main model, in llama.cpp's order and meaning.

logit bias, penalties, top-k, top-p, min-p, temperature, then one draw; temperature 0 takes the likeliest token after
bias and penalties. One random number is drawn per emitted token, so the stream of draws is the same however many
positions were verified together. The formulas are those of llama.cpp's `llama-sampler.cpp`.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline_mlx_worker.context import Context
    from paceline_worker.request import Sampling

Vector = np.ndarray[Any, np.dtype[Any]]

_FIRST_LOOK = 256
"""How many of the likeliest tokens top-p looks at before it looks at eight times as many."""


class Sampler:
    """Samples and remembers what it sampled."""

    def __init__(self, sampling: Sampling, n_vocab: int, n_ctx: int, history: Sequence[int]) -> None:
        """`history`: the prompt, which the penalties look at; a `repeat_last_n` of -1 means all of the context."""
        self._sampling = sampling
        self._greedy = sampling.temperature <= 0
        bias = [(token, value) for token, value in sampling.logit_bias if 0 <= token < n_vocab]
        self._bias_ids = np.array([token for token, _ in bias], dtype=np.int64)
        self._bias = np.array([value for _, value in bias], dtype=np.float32)
        self._window: deque[int] = deque()
        self._counts: Counter[int] = Counter()
        self._window_size = 0
        if sampling.penalizes:
            self._window_size = min(n_ctx, sampling.repeat_last_n) if sampling.repeat_last_n >= 0 else n_ctx
            for token in history[max(0, len(history) - self._window_size) :]:
                self._remember(token)
        self._random = random.Random(sampling.seed)

    def sample(self, context: Context, index: int) -> int:
        """The main model's token at one of the outputs. Positions are sampled in order."""
        if self._greedy and not self._window_size and not len(self._bias_ids):
            return context.likeliest(index)
        return self.choose(context.logits(index))

    def choose(self, logits: Vector) -> int:
        """The token for the logits of one position, shape (n_vocab,)."""
        logits = self._adjusted(logits)
        token = int(np.argmax(logits)) if self._greedy else self._draw(logits)
        if self._window_size:
            self._remember(token)
        return token

    def _adjusted(self, logits: Vector) -> Vector:
        if not len(self._bias_ids) and not self._counts:
            return logits
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        if self._counts:
            s = self._sampling
            tokens = np.fromiter(self._counts.keys(), dtype=np.int64, count=len(self._counts))
            counts = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
            seen = logits[tokens]
            seen = np.where(seen <= 0, seen * s.repeat_penalty, seen / s.repeat_penalty)
            logits[tokens] = seen - counts * s.frequency_penalty - s.presence_penalty
        return logits

    def _draw(self, logits: Vector) -> int:
        s = self._sampling
        tokens, values = self._narrowed(logits)
        likeliest = values.max()
        if s.min_p > 0:
            kept = values >= likeliest + math.log(s.min_p)
            tokens, values = tokens[kept], values[kept]
        with np.errstate(over="ignore"):
            weights = np.cumsum(np.exp((values - likeliest).astype(np.float64) / s.temperature))
        at = int(np.searchsorted(weights, self._random.random() * weights[-1], side="right"))
        return int(tokens[min(at, len(tokens) - 1)])

    def _narrowed(self, logits: Vector) -> tuple[Vector, Vector]:
        """What top-k and top-p leave: token ids and their logits, the likeliest first where it was sorted."""
        s = self._sampling
        if s.top_k > 0:
            tokens = _top(logits, s.top_k)
            values = logits[tokens]
            if s.top_p < 1:
                weights = np.cumsum(np.exp((values - values[0]).astype(np.float64)))
                kept = _nucleus(weights, s.top_p * weights[-1])
                tokens, values = tokens[:kept], values[:kept]
            return tokens, values
        if s.top_p >= 1:
            return np.arange(len(logits)), logits
        total = float(np.exp((logits - logits.max()).astype(np.float64)).sum())
        look = _FIRST_LOOK
        while True:
            tokens = _top(logits, look)
            values = logits[tokens]
            weights = np.cumsum(np.exp((values - values[0]).astype(np.float64)))
            if weights[-1] >= s.top_p * total or look >= len(logits):
                kept = _nucleus(weights, s.top_p * total)
                return tokens[:kept], values[:kept]
            look *= 8

    def _remember(self, token: int) -> None:
        self._window.append(token)
        self._counts[token] += 1
        if len(self._window) > self._window_size:
            gone = self._window.popleft()
            self._counts[gone] -= 1
            if not self._counts[gone]:
                del self._counts[gone]


def _top(logits: Vector, count: int) -> Vector:
    """The `count` likeliest tokens, the likeliest first, equals by their ids."""
    if count < len(logits):
        tokens = np.argpartition(logits, len(logits) - count)[len(logits) - count :]
    else:
        tokens = np.arange(len(logits))
    likeliest_first: Vector = tokens[np.lexsort((tokens, -logits[tokens]))]
    return likeliest_first


def _nucleus(weights: Vector, enough: float) -> int:
    """How many of the likeliest tokens it takes to reach `enough`; `weights` are cumulated."""
    return min(int(np.searchsorted(weights, enough, side="left")) + 1, len(weights))
