"""DRY, the penalty on repeating whole sequences, with llama.cpp's meaning (`llama_sampler_dry` in llama-sampler.cpp).

What would continue a sequence that stood before is penalized by `multiplier * base ** (length - allowed_length)`, the
longer the more. A sequence breaker ends every repetition.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from paceline_mlx_worker.binding import Model
    from paceline_worker.request import Sampling

Vector = np.ndarray[Any, np.dtype[Any]]
_LONGEST_BREAKER = 40
_LONGEST_TAIL = 20
_MOST_LOG = 88.7228391
"""Logarithm of the largest 32-bit float."""
_KEPT = 4


class Breakers:
    """What the sequence breakers are in one model's tokens; the last few sets of them stay known."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: OrderedDict[tuple[str, ...], Tails] = OrderedDict()

    def tails(self, breakers: tuple[str, ...]) -> Tails:
        found = self._known.pop(breakers, None)
        self._known[breakers] = found = Tails(self._model, breakers) if found is None else found
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found


class Tails(dict[int, list[list[int]]]):
    """Token -> how a breaker that it begins goes on: lists of tokens, an empty one where the token holds all of it.

    A token is spelled when it is asked for. llama.cpp spells the whole vocabulary beforehand, which takes a second of
    150,000 tokens here and would stop every stream.
    """

    def __init__(self, model: Model, breakers: Iterable[str]) -> None:
        super().__init__()
        self._model = model
        self._breakers = [breaker.encode("utf-8", errors="replace")[:_LONGEST_BREAKER] for breaker in breakers]

    def __missing__(self, token: int) -> list[list[int]]:
        word = self._model.spell(token, special=True)
        found: list[list[int]] = []
        for breaker in self._breakers:
            found.extend(tail for tail in self._after(word, breaker) if tail not in found)
        self[token] = found
        return found

    def _after(self, word: bytes, breaker: bytes) -> list[list[int]]:
        """How a breaker goes on after a token that holds it, or ends with its beginning."""
        if not breaker:
            return []
        if breaker in word:
            return [[]]
        ends = [n for n in range(1, min(len(word), len(breaker) - 1) + 1) if word.endswith(breaker[:n])]
        rests = [breaker[n:].decode("utf-8", errors="replace") for n in ends]
        return [self._model.tokenize(rest, add_special=False)[:_LONGEST_TAIL] for rest in rests]


class Dry:
    """The penalties for one output."""

    def __init__(
        self, sampling: Sampling, n_ctx: int, history: Sequence[int], tails: Mapping[int, list[list[int]]]
    ) -> None:
        """`history`: the prompt; a `dry_penalty_last_n` of -1 means all of the context. `tails`: as `Tails`, for any
        token."""
        self._multiplier, self._base = sampling.dry_multiplier, sampling.dry_base
        self._allowed = sampling.dry_allowed_length
        self._window = min(n_ctx, sampling.dry_penalty_last_n) if sampling.dry_penalty_last_n >= 0 else n_ctx
        self._most = int(_MOST_LOG / math.log(self._base)) if self._base > 1.000001 else 0
        self._tails = tails
        self._tokens: Vector = np.zeros(len(history) + 256, dtype=np.int64)
        self._tokens[: len(history)] = history
        self._count = len(history)

    def remember(self, token: int) -> None:
        """A token was emitted."""
        if self._count == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
        self._tokens[self._count] = token
        self._count += 1

    def penalties(self) -> tuple[Vector, Vector]:
        """Tokens that would continue a repetition, and what is to be taken from their logits."""
        lengths = self._lengths() if self._base >= 1 else {}
        tokens = [token for token in lengths if [] not in self._tails[token]]
        excess = np.array([lengths[token] - self._allowed for token in tokens], dtype=np.float64)
        if self._most:
            excess = np.minimum(excess, self._most)
        with np.errstate(over="ignore"):
            amounts = (self._multiplier * self._base**excess).astype(np.float32)
        return np.array(tokens, dtype=np.int64), amounts

    def _lengths(self) -> dict[int, int]:
        """Token -> the longest end of the text that stood before it, where that is long enough."""
        recent = self._tokens[max(0, self._count - self._window) : self._count]
        if len(recent) <= self._allowed:
            return {}
        limit = self._since_breaker(recent)
        if limit < self._allowed:
            return {}
        found: dict[int, int] = {}
        if self._allowed <= 0:
            found.update((int(token), 0) for token in np.unique(recent[1:]))
        # Ends of earlier occurrences of the text's last 1, 2, ... tokens; each must be followed by a token.
        ends = np.flatnonzero(recent[:-1] == recent[-1])
        length = 1
        most = min(limit, self._allowed + self._most) if self._most else limit
        while len(ends) and length <= most:
            if length >= self._allowed:
                found.update((int(token), length) for token in np.unique(recent[ends + 1]))
            ends = ends[ends >= length]
            ends = ends[recent[ends - length] == recent[-1 - length]]
            length += 1
        return found

    def _since_breaker(self, recent: Vector) -> int:
        """How many tokens follow the last breaker."""
        text: list[int] = recent[::-1].tolist()
        for back, token in enumerate(text):
            lengths = [
                len(tail)
                for tail in self._tails[token]
                if len(tail) <= back and tail == text[back - len(tail) : back][::-1]
            ]
            if lengths:
                return back - max(lengths)
        return len(text)
