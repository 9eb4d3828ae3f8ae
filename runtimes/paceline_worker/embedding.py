"""Requests for embeddings: texts to batches, batches to vectors of length 1, with a look at the request in between."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Generic

from paceline_worker.primitives import ModelT
from paceline_worker.protocol import Fault

BATCH_TOKENS = 512
"""Tokens beyond which no further text joins a batch: larger ones compute no faster, and end later."""

Texts = Sequence[Sequence[int]]
"""The tokens of each text."""


class Embedder(ABC, Generic[ModelT]):
    """A model that reads a text as a whole and makes a vector of it."""

    batch_texts = 16
    """Texts that are computed together at most."""
    pads = False
    """Whether every text of a batch costs as much as its longest."""

    def __init__(self, model: ModelT, n_ctx: int) -> None:
        """`n_ctx`: the most tokens of a text."""
        self.model = model
        self.n_ctx = n_ctx

    @abstractmethod
    def compute(self, texts: Texts) -> list[list[float]]:
        """The pooled states of each text of a batch, of any length."""

    def close(self) -> None:
        self.model.close()

    def embed(self, inputs: Sequence[str], progress: Callable[[float], None]) -> tuple[list[list[float]], int]:
        """One vector of length 1 per input, in their order, and the number of tokens read.

        `progress` is told between batches, and may raise to end it there.
        """
        texts = [self.model.tokenize(text, add_special=True) for text in inputs]
        for i, tokens in enumerate(texts):
            if not tokens:
                raise Fault.invalid("inputs", f"input {i} has no tokens")
            if len(tokens) > self.n_ctx:
                raise Fault(
                    "context_exceeded",
                    f"input {i} has {len(tokens)} tokens; the model reads at most {self.n_ctx}",
                    prompt_tokens=len(tokens),
                    context_length=self.n_ctx,
                )
        vectors: list[list[float]] = []
        progress(0.0)
        for batch in self._batches(texts):
            for pooled in self.compute(batch):
                length = math.hypot(*pooled) or 1.0
                vectors.append([number / length for number in pooled])
            progress(len(vectors) / len(texts))
        return vectors, sum(map(len, texts))

    def _batches(self, texts: Texts) -> Iterator[Texts]:
        """The texts in their order, as many at a time as are computed together."""
        batch: list[Sequence[int]] = []
        for text in texts:
            grown = [*batch, text]
            cost = len(grown) * max(map(len, grown)) if self.pads else sum(map(len, grown))
            if batch and (len(grown) > self.batch_texts or cost > min(BATCH_TOKENS, self.n_ctx)):
                yield batch
                grown = [text]
            batch = grown
        if batch:
            yield batch
