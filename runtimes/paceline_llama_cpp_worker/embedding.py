"""Embeddings: one vector per text, pooled as the model's metadata says and scaled to length 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp as ll

from paceline_llama_cpp_worker.binding import Batch, apply, forget_log, last_errors, taken
from paceline_worker.protocol import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paceline_llama_cpp_worker.binding import Model
    from paceline_llama_cpp_worker.options import ContextOptions


_TEXTS = 16
"""Texts computed together at most, each a sequence, for which llama.cpp sets as many numbers aside as it has tokens."""

_TOGETHER = 512
"""Tokens beyond which no further text joins a batch: larger ones compute no faster, and end later."""


class Embedder:
    """A model that reads a text as a whole and makes a vector of it."""

    def __init__(self, model: Model, *, n_ctx: int, threads: int | None, options: ContextOptions) -> None:
        params = ll.llama_context_default_params()
        # A text is read in one batch, because its tokens attend to those before and after them.
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        # Each recurrent state takes memory, while the texts of a batch share the cells of a cache.
        params.n_seq_max = self._texts = _TEXTS if model.can_roll_back else 1
        params.kv_unified = True
        params.embeddings = True
        apply(options, params)
        if threads is not None:
            params.n_threads = params.n_threads_batch = threads
        forget_log()
        self.handle = ll.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise Fault("load_failed", f"llama.cpp cannot make a context of {n_ctx} tokens: {last_errors()}")
        model.adapt(self.handle)
        self.memory = taken(model)
        self.model = model
        self.n_ctx = n_ctx
        if ll.llama_pooling_type(self.handle) in (ll.LLAMA_POOLING_TYPE_NONE, ll.LLAMA_POOLING_TYPE_RANK):
            ll.llama_free(self.handle)
            raise Fault("load_failed", "the model gives no vector for a whole text")
        self._width: int = ll.llama_model_n_embd_out(model.handle)
        self._batch = Batch(n_ctx, n_ctx)

    def embed(self, inputs: Sequence[str], progress: Callable[[float], None]) -> tuple[list[list[float]], int]:
        """One vector of length 1 per input, in their order, and the number of tokens read.

        `progress` is told between batches, and may raise to end it there.
        """
        tokenized = [self.model.tokenize(text, add_special=True) for text in inputs]
        for i, tokens in enumerate(tokenized):
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
        for texts in self._batches(tokenized):
            vectors.extend(self._together(texts))
            progress(len(vectors) / len(tokenized))
        return vectors, sum(map(len, tokenized))

    def close(self) -> None:
        self._batch.close()
        ll.llama_free(self.handle)
        self.model.close()

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """The texts in their order, as many at a time as are computed together."""
        batch: list[Sequence[int]] = []
        tokens = 0
        for text in texts:
            if batch and (len(batch) == self._texts or tokens + len(text) > min(_TOGETHER, self.n_ctx)):
                yield batch
                batch, tokens = [], 0
            batch.append(text)
            tokens += len(text)
        if batch:
            yield batch

    def _together(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        memory = ll.llama_get_memory(self.handle)
        if memory:
            ll.llama_memory_clear(memory, True)
        self._batch.clear()
        for seq, tokens in enumerate(texts):
            self._batch.add(seq, tokens, 0, outputs=len(tokens))
        run = ll.llama_decode if memory else ll.llama_encode
        status = run(self.handle, self._batch.struct)
        if status != 0:
            raise Fault("engine_failed", f"llama.cpp returned {status} for {self._batch.size} tokens: {last_errors()}")
        return [self._vector(seq) for seq in range(len(texts))]

    def _vector(self, seq: int) -> list[float]:
        pointer = ll.llama_get_embeddings_seq(self.handle, seq)
        vector: np.ndarray[Any, np.dtype[np.float32]] = np.ctypeslib.as_array(pointer, (self._width,)).copy()
        length = float(np.linalg.norm(vector))
        scaled: list[float] = (vector / length if length > 0 else vector).tolist()
        return scaled
