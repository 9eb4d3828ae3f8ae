"""Models, contexts and batches of llama.cpp over ctypes. Nothing here decides anything.

Signatures and struct fields are those of llama-cpp-python 0.3.36 (`llama_cpp/llama_cpp.py`), which mirrors `llama.h`.
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import llama_cpp
import numpy as np
from llama_cpp import _ggml
from llama_cpp import llama_cpp as ll

from paceline_worker.protocol import Fault

VERSION: str = llama_cpp.__version__

Logits: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
"""One position's logits, shape (n_vocab,)."""

_LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUE = 3, 4, 5
_DEVICE_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator", 4: "meta"}
_recent_errors: deque[str] = deque(maxlen=8)


def start() -> None:
    """Initialize the library once; its warnings and errors go to stderr, the rest nowhere."""
    ll.llama_log_set(_log_callback, ctypes.c_void_p(0))
    ll.llama_backend_init()


def devices() -> list[dict[str, Any]]:
    """What ggml sees: name, kind and memory in bytes."""
    lib = _ggml.libggml
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.argtypes, lib.ggml_backend_dev_get.restype = [ctypes.c_size_t], ctypes.c_void_p
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        getattr(lib, name).argtypes, getattr(lib, name).restype = [ctypes.c_void_p], ctypes.c_char_p
    lib.ggml_backend_dev_type.argtypes, lib.ggml_backend_dev_type.restype = [ctypes.c_void_p], ctypes.c_int
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(
            {
                "name": lib.ggml_backend_dev_name(device).decode(errors="replace"),
                "description": lib.ggml_backend_dev_description(device).decode(errors="replace"),
                "kind": _DEVICE_KINDS.get(lib.ggml_backend_dev_type(device), "unknown"),
                "memory_bytes": total.value or None,
            }
        )
    return found


class Model:
    """A loaded GGUF model and its vocabulary."""

    def __init__(self, path: str, *, gpu_layers: int, progress: Callable[[float], None]) -> None:
        params = ll.llama_model_default_params()
        params.n_gpu_layers = gpu_layers

        def report(fraction: float, _: object) -> bool:
            progress(fraction)
            return True

        callback = ll.llama_progress_callback(report)  # referenced until loading returns
        params.progress_callback = callback
        _recent_errors.clear()
        self.handle = ll.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise Fault("load_failed", f"llama.cpp cannot load {path}: {_last_errors()}", path=path)
        self.vocab = ll.llama_model_get_vocab(self.handle)
        self.n_vocab: int = ll.llama_vocab_n_tokens(self.vocab)
        self.n_ctx_train: int = ll.llama_model_n_ctx_train(self.handle)
        self.can_roll_back = not (ll.llama_model_is_recurrent(self.handle) or ll.llama_model_is_hybrid(self.handle))
        self.is_generative = bool(ll.llama_model_has_decoder(self.handle)) and not (
            ll.llama_model_is_diffusion(self.handle)
        )
        bos = ll.llama_vocab_bos(self.vocab)
        self.bos: int | None = bos if bos >= 0 else None
        self._pieces: dict[int, bytes] = {}

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written out in `text` become their ids."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        while True:
            tokens = (ll.llama_token * room)()
            n = ll.llama_tokenize(self.vocab, data, len(data), tokens, room, add_special, True)
            if n >= 0:
                return list(tokens[:n])
            room = -n

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the output; control tokens add none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self.spell(token, special=False)
        return known

    def spell(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token, control tokens written out if `special`."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = ll.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def ends(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""
        return bool(ll.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        ll.llama_model_free(self.handle)


class Context:
    """One sequence's state over a model: what is computed, and the logits of the last decode."""

    def __init__(self, model: Model, *, n_ctx: int, n_batch: int, n_outputs: int, threads: int | None) -> None:
        params = ll.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_batch
        params.n_seq_max = 1
        # Bounds the logits buffer; a batch that asks for more outputs aborts the process, so `decode` checks it.
        params.n_outputs_max = params.n_outputs_max_per_seq = n_outputs
        if threads is not None:
            params.n_threads = params.n_threads_batch = threads
        _recent_errors.clear()
        self.handle = ll.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise Fault("load_failed", f"llama.cpp cannot make a context of {n_ctx} tokens: {_last_errors()}")
        self.model = model
        self.n_batch = n_batch
        self._n_outputs = n_outputs
        self._memory = ll.llama_get_memory(self.handle)
        self._batch = ll.llama_batch_init(n_batch, 0, 1)
        self._token = np.ctypeslib.as_array(self._batch.token, (n_batch,))
        self._pos = np.ctypeslib.as_array(self._batch.pos, (n_batch,))
        self._output = np.ctypeslib.as_array(self._batch.logits, (n_batch,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (n_batch,))[:] = 1
        for i in range(n_batch):
            self._batch.seq_id[i][0] = 0

    def decode(self, tokens: Sequence[int], start: int, *, outputs: int) -> None:
        """Compute `tokens` at positions `start`, `start + 1`, ...; the last `outputs` of them get logits."""
        n = len(tokens)
        if not (0 < n <= self.n_batch and outputs <= min(n, self._n_outputs)):
            raise Fault("engine_failed", f"a batch of {n} tokens with {outputs} outputs does not fit the context")
        self._token[:n] = tokens
        self._pos[:n] = np.arange(start, start + n)
        self._output[: n - outputs] = 0
        self._output[n - outputs : n] = 1
        self._batch.n_tokens = n
        _recent_errors.clear()
        status = ll.llama_decode(self.handle, self._batch)
        if status != 0:
            raise Fault("engine_failed", f"llama_decode returned {status} for {n} tokens at {start}: {_last_errors()}")

    def logits(self, index: int) -> Logits:
        """Logits of one token of the last batch, shape (n_vocab,); a view that the next decode overwrites."""
        pointer = ll.llama_get_logits_ith(self.handle, index)
        view: Logits = np.ctypeslib.as_array(pointer, (self.model.n_vocab,))
        return view

    def keep(self, length: int) -> bool:
        """Forget everything from position `length` on; False when this memory cannot."""
        return bool(ll.llama_memory_seq_rm(self._memory, 0, length, -1))

    def clear(self) -> None:
        ll.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        ll.llama_batch_free(self._batch)
        ll.llama_free(self.handle)


@ll.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes | None, _: object) -> None:
    if level in (_LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUE) and text:
        line = text.decode("utf-8", errors="replace")
        if level != _LEVEL_CONTINUE:
            sys.stderr.write(line)
        if level == _LEVEL_ERROR:
            _recent_errors.append(line.strip())


def _last_errors() -> str:
    return "; ".join(_recent_errors) or "it gave no reason"
