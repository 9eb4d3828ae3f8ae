"""Requests for embeddings: texts to batches, which requests share, and batches to vectors of length 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic

from paceline_worker.primitives import ModelT
from paceline_worker.protocol import Fault

BATCH_TOKENS = 512
"""Tokens beyond which no further text joins a batch: larger ones compute no faster, and end later."""

Texts = Sequence[Sequence[int]]
"""The tokens of each text."""


@dataclass
class Embedding:
    """One request on its way."""

    texts: Texts
    vectors: list[list[float]] = field(default_factory=list)
    """Of the first so many texts, each of length 1."""

    @property
    def left(self) -> int:
        """Texts that have no vector yet."""
        return len(self.texts) - len(self.vectors)

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(map(len, self.texts))


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

    def open(self, inputs: Sequence[str]) -> Embedding:
        """Begin a request: tokenize its texts and check that each can be read. Computes nothing yet."""
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
        return Embedding(texts)

    def joins(self, embeddings: Sequence[Embedding]) -> bool:
        """Whether texts of a further request may join these requests' in their next batch."""
        return sum(embedding.left for embedding in embeddings) < self.batch_texts

    def step(self, embeddings: Sequence[Embedding]) -> None:
        """Compute one batch of what is left: the first request's texts, then the next one's, as many as fit."""
        batch = self._together((e, text) for e in embeddings for text in e.texts[len(e.vectors) :])
        if not batch:
            return
        for (embedding, _), pooled in zip(batch, self.compute([text for _, text in batch]), strict=True):
            length = math.hypot(*pooled) or 1.0
            embedding.vectors.append([number / length for number in pooled])

    def _together(self, waiting: Iterator[tuple[Embedding, Sequence[int]]]) -> list[tuple[Embedding, Sequence[int]]]:
        """The first of them, in their order, as many as are computed together."""
        batch: list[tuple[Embedding, Sequence[int]]] = []
        tokens = longest = 0
        for embedding, text in waiting:
            tokens, longest = tokens + len(text), max(longest, len(text))
            cost = (len(batch) + 1) * longest if self.pads else tokens
            if batch and (len(batch) >= self.batch_texts or cost > min(BATCH_TOKENS, self.n_ctx)):
                break
            batch.append((embedding, text))
        return batch
