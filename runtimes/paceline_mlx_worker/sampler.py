"""The request's sampler chain on the main model, in llama.cpp's order and meaning, kept to a grammar if there is one.

logit bias, penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature, then one draw; temperature 0 takes the
likeliest token after bias, penalties and DRY. What is drawn for a token depends on the tokens before it and on nothing
else: random numbers are drawn for emitted tokens only, which are sampled in order however many positions were verified
together. The formulas are those of llama.cpp's `llama-sampler.cpp`.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np

from paceline_mlx_worker.dry import Breakers, Dry
from paceline_worker import primitives

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline_mlx_worker.binding import Model
    from paceline_mlx_worker.context import Context
    from paceline_worker.grammar import Matcher
    from paceline_worker.request import GenerateRequest, Sampling

Vector = np.ndarray[Any, np.dtype[Any]]

_FIRST_LOOK = 256
"""How many of the likeliest tokens top-p looks at before it looks at eight times as many."""


class Samplers(primitives.Samplers["Context"]):
    """Makes the samplers of one model; keeps what DRY has read of its vocabulary."""

    def __init__(self, model: Model, n_ctx: int) -> None:
        self._model = model
        self._n_ctx = n_ctx
        self._breakers = Breakers(model)

    def open(self, request: GenerateRequest, history: Sequence[int], grammar: Matcher | None) -> Sampler:
        """`history`: the prompt, which penalties and DRY look at."""
        dry = None
        if request.sampling.dries:
            dry = Dry(
                request.sampling, self._n_ctx, history, self._breakers.tails(request.sampling.dry_sequence_breakers)
            )
        return Sampler(request.sampling, self._model.n_vocab, self._n_ctx, history, dry=dry, grammar=grammar)


class Sampler(primitives.Sampler["Context"]):
    """Samples and remembers what it sampled."""

    def __init__(
        self,
        sampling: Sampling,
        n_vocab: int,
        n_ctx: int,
        history: Sequence[int],
        *,
        dry: Dry | None = None,
        grammar: Matcher | None = None,
    ) -> None:
        """`history`: the prompt, which the penalties look at; a `repeat_last_n` of -1 means all of the context.

        `grammar` is asked here and advanced by who commits the token.
        """
        self.grammar = grammar
        self._sampling = sampling
        self._dry = dry
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
        self._chance = random.Random(f"xtc {sampling.seed}")
        """XTC's coin. It must not show what `_random` will draw for the same token."""

    def sample(self, context: Context, index: int) -> int:
        """The main model's token at one of the outputs. Positions are sampled in order.

        Raises Fault when the grammar allows none.
        """
        if self._greedy and not self._window_size and not len(self._bias_ids) and self._dry is None:
            token = context.likeliest(index)
            if self.grammar is None or self.grammar.allows(token):
                return token
        return self.choose(context.logits(index))

    def choose(self, logits: Vector) -> int:
        """The token for the logits of one position, shape (n_vocab,)."""
        logits = self._adjusted(logits)
        token = self._chosen(logits)
        if self.grammar is not None and not self.grammar.allows(token):
            allowed = self.grammar.allowed()
            token = int(allowed[self._chosen(logits[allowed])])
        if self._window_size:
            self._remember(token)
        if self._dry is not None:
            self._dry.remember(token)
        return token

    def _chosen(self, logits: Vector) -> int:
        return int(np.argmax(logits)) if self._greedy else self._draw(logits)

    def _adjusted(self, logits: Vector) -> Vector:
        if not len(self._bias_ids) and not self._counts and self._dry is None:
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
        if self._dry is not None:
            tokens, amounts = self._dry.penalties()
            logits[tokens] -= amounts
        return logits

    def _draw(self, logits: Vector) -> int:
        s = self._sampling
        tokens, values = self._narrowed(logits) if s.typical_p >= 1 else self._typical(logits)
        likeliest = values.max()
        if s.min_p > 0:
            kept = values >= likeliest + math.log(s.min_p)
            tokens, values = tokens[kept], values[kept]
        if s.xtc_probability > 0:
            tokens, values = self._without_top_choices(tokens, values)
            likeliest = values.max()
        with np.errstate(over="ignore"):
            weights = np.cumsum(np.exp((values - likeliest).astype(np.float64) / s.temperature))
        at = int(np.searchsorted(weights, self._random.random() * weights[-1], side="right"))
        return int(tokens[min(at, len(tokens) - 1)])

    def _typical(self, logits: Vector) -> tuple[Vector, Vector]:
        """What top-k, typical (the tokens whose surprise is nearest to its mean) and top-p leave."""
        s = self._sampling
        tokens = _top(logits, s.top_k or len(logits))
        values: Vector = logits[tokens].astype(np.float64)
        surprise = np.log(np.exp(values - values[0]).sum()) - (values - values[0])
        chances = np.exp(-surprise)
        nearest = np.argsort(np.abs(surprise - (chances * surprise).sum()), kind="stable")
        kept = int(np.searchsorted(np.cumsum(chances[nearest]), s.typical_p, side="right")) + 1
        places = np.sort(nearest[:kept])
        tokens = tokens[places]
        if s.top_p < 1:
            weights = np.cumsum(chances[places])
            tokens = tokens[: _nucleus(weights, s.top_p * weights[-1])]
        return tokens, logits[tokens]

    def _without_top_choices(self, tokens: Vector, values: Vector) -> tuple[Vector, Vector]:
        """What XTC leaves: of the tokens above its threshold, now and then, only the least likely."""
        s = self._sampling
        if s.xtc_threshold > 0.5 or len(tokens) < 2 or self._chance.random() > s.xtc_probability:
            return tokens, values
        weights = np.exp((values - values.max()).astype(np.float64))
        top = np.flatnonzero(weights >= s.xtc_threshold * weights.sum())
        if len(top) < 2:
            return tokens, values
        last = top[np.lexsort((tokens[top], -values[top]))[-1]]
        kept: Vector = np.ones(len(tokens), dtype=bool)
        kept[top] = False
        kept[last] = True
        return tokens[kept], values[kept]

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
