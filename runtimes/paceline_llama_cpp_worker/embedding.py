"""Embeddings, pooled by llama.cpp as the model's metadata says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llama_cpp import llama_cpp as ll

from paceline_llama_cpp_worker.binding import Batch, Model, apply, forget_log, last_errors, taken
from paceline_worker import embedding
from paceline_worker.protocol import Fault

if TYPE_CHECKING:
    from paceline_llama_cpp_worker.options import ContextOptions


class Embedder(embedding.Embedder[Model]):
    """A model and a context in which each text of a batch is a sequence."""

    def __init__(self, model: Model, *, n_ctx: int, threads: int | None, options: ContextOptions) -> None:
        super().__init__(model, n_ctx)
        if not model.can_roll_back:
            self.batch_texts = 1  # each recurrent state takes memory; the texts of a batch share a cache's cells
        params = ll.llama_context_default_params()
        # A text is read in one batch, because its tokens attend to those before and after them.
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        # llama.cpp sets as many numbers aside for each sequence as there are tokens in the vocabulary.
        params.n_seq_max = self.batch_texts
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
        if ll.llama_pooling_type(self.handle) in (ll.LLAMA_POOLING_TYPE_NONE, ll.LLAMA_POOLING_TYPE_RANK):
            ll.llama_free(self.handle)
            raise Fault("load_failed", "the model gives no vector for a whole text")
        self._width: int = ll.llama_model_n_embd_out(model.handle)
        self._batch = Batch(n_ctx, n_ctx)

    def compute(self, texts: embedding.Texts) -> list[list[float]]:
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
        pointers = [ll.llama_get_embeddings_seq(self.handle, seq) for seq in range(len(texts))]
        return [np.ctypeslib.as_array(pointer, (self._width,)).tolist() for pointer in pointers]

    def close(self) -> None:
        self._batch.close()
        ll.llama_free(self.handle)
        super().close()
