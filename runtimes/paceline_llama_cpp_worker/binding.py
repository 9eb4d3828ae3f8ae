"""Models, contexts and batches of llama.cpp over ctypes. Nothing here decides anything.

Signatures and struct fields are those of llama-cpp-python 0.3.36 (`llama_cpp/llama_cpp.py`), which mirrors `llama.h`.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import llama_cpp
import numpy as np
from llama_cpp import _ggml
from llama_cpp import llama_cpp as ll

from paceline_llama_cpp_worker.options import CACHE_TYPES, ContextOptions, Placement
from paceline_worker.adapters import Adapter
from paceline_worker.byte_level import byte_level_table
from paceline_worker.options import invalid
from paceline_worker.pieces import Pieces
from paceline_worker.protocol import Fault

VERSION: str = llama_cpp.__version__

Logits: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
"""One position's logits, shape (n_vocab,)."""

State: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
"""A sequence's state or a part of it, as llama.cpp writes it."""

_PARTIAL = 1
"""`LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY`."""
_LEVEL_INFO, _LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUE = 2, 3, 4, 5
_F16, _BF16 = CACHE_TYPES["f16"], CACHE_TYPES["bf16"]
_DEVICE_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator", 4: "meta"}
_BUFFER = re.compile(r": +\S+ +(?P<kind>\w[\w ]*?) buffer size = +(?P<size>[\d.]+) MiB")
_PART = 64 * 1024
"""Tokens that are brought from llama.cpp at once."""
_ALL_BYTES = {character.encode() for character in byte_level_table()}
_BYTES = ctypes.POINTER(ctypes.c_uint8)
_recent_errors: deque[str] = deque(maxlen=8)
_buffers: list[tuple[str, float]] = []
"""What llama.cpp said it allocated since the list was cleared: kind and MiB."""


def start() -> None:
    """Initialize the library once; its warnings and errors go to stderr, the rest nowhere."""
    ll.llama_log_set(_log_callback, ctypes.c_void_p(0))
    ll.llama_backend_init()


def devices() -> list[dict[str, Any]]:
    """What ggml sees: name, kind, and memory in bytes, all of it and what is free."""
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
                "memory_free_bytes": free.value if total.value else None,
            }
        )
    return found


def gpus() -> list[str]:
    """The names of the GPUs among which a model can be divided: integrated ones only if there are no others."""
    found = {kind: [d["name"] for d in devices() if d["kind"] == kind] for kind in ("gpu", "igpu")}
    return found["gpu"] or found["igpu"]


class Model(Pieces):
    """A loaded GGUF model and its vocabulary."""

    def __init__(
        self,
        path: str,
        *,
        placement: Placement,
        adapters: Sequence[Adapter] = (),
        progress: Callable[[float], None],
    ) -> None:
        super().__init__()
        self._ends: dict[int, bool] = {}
        params = ll.llama_model_default_params()
        params.n_gpu_layers = placement.gpu_layers
        params.load_mode = placement.load_mode
        if placement.main_gpu is not None:
            params.split_mode = ll.LLAMA_SPLIT_MODE_NONE
            params.main_gpu = placement.main_gpu
        if placement.tensor_split is not None:
            shares = (ctypes.c_float * ll.llama_max_devices())(*placement.tensor_split)
            params.tensor_split = shares

        def report(fraction: float, _: object) -> bool:
            progress(fraction)
            return True

        callback = ll.llama_progress_callback(report)  # referenced until loading returns
        params.progress_callback = callback
        forget_log()
        self.handle = ll.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise Fault("load_failed", f"llama.cpp cannot load {path}: {last_errors()}", path=path)
        if ll.llama_model_has_encoder(self.handle) and ll.llama_model_has_decoder(self.handle):
            ll.llama_model_free(self.handle)
            raise Fault(
                "load_failed",
                f"{path} reads with an encoder and writes with a decoder; only models of one part are served",
                path=path,
                help="use a model that goes on with a text, such as Llama or Qwen, or one that makes embeddings",
            )
        self.size: int = ll.llama_model_size(self.handle)
        """Bytes of the weights, adapters included."""
        self._adapters = [(self._adapter(adapter), adapter.scale) for adapter in adapters]
        self.vocab = ll.llama_model_get_vocab(self.handle)
        self.n_vocab: int = ll.llama_vocab_n_tokens(self.vocab)
        self.n_ctx_train: int = ll.llama_model_n_ctx_train(self.handle)
        self.can_roll_back = not (ll.llama_model_is_recurrent(self.handle) or ll.llama_model_is_hybrid(self.handle))
        self.is_generative = bool(ll.llama_model_has_decoder(self.handle)) and not (
            ll.llama_model_is_diffusion(self.handle)
        )
        self.caches_all_tokens = self.can_roll_back and ll.llama_model_n_swa(self.handle) == 0
        """Whether a sequence's state is one cell for every token."""
        bos = ll.llama_vocab_bos(self.vocab)
        self.bos: int | None = bos if bos >= 0 else None

    def adapt(self, context: Any) -> None:
        """Have a new context add the adapters to the weights."""
        if self._adapters:
            handles, scales = zip(*self._adapters, strict=True)
            n = len(handles)
            ll.llama_set_adapters_lora(
                context, (ll.llama_adapter_lora_p_ctypes * n)(*handles), n, (ctypes.c_float * n)(*scales)
            )

    def _adapter(self, adapter: Adapter) -> Any:
        """A loaded adapter, which llama.cpp frees with the model."""
        forget_log()
        handle = ll.llama_adapter_lora_init(self.handle, adapter.path.encode())
        if not handle or ll.llama_adapter_get_alora_n_invocation_tokens(handle):
            reason = (
                "it is to be used only after tokens that invoke it, which is not served" if handle else last_errors()
            )
            self.close()
            raise invalid("lora", f"the adapter {adapter.path} cannot be used with this model: {reason}")
        self.size += sum(round(size * 2**20) for kind, size in _buffers if kind == "LoRA")
        return handle

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written out in `text` become their ids."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        while True:
            tokens = (ll.llama_token * room)()
            n = ll.llama_tokenize(self.vocab, data, len(data), tokens, room, add_special, True)
            if n >= 0:
                # Part by part, so that other threads run in between.
                return [token for i in range(0, n, _PART) for token in tokens[i : min(i + _PART, n)]]
            room = -n

    @cached_property
    def token_bytes(self) -> int | None:
        """The most bytes of a text that one token can stand for; None where a tokenizer drops some, or reads several
        as one token that is not spelled like them."""
        model, tokens = self._metadata("tokenizer.ggml.model"), range(self.n_vocab)
        if model not in ("gpt2", "llama"):
            return None
        texts = [ll.llama_vocab_get_text(self.vocab, token) for token in tokens]
        if model == "gpt2" and not _ALL_BYTES.issubset(texts):
            return None
        # Such a token takes the white space around it along.
        strips = ll.LLAMA_TOKEN_ATTR_LSTRIP | ll.LLAMA_TOKEN_ATTR_RSTRIP
        if any(ll.llama_vocab_get_attr(self.vocab, token) & strips for token in tokens):
            return None
        # As they are written in the vocabulary, they are as long as what they stand for, or longer.
        return max(map(len, texts), default=None)

    def _metadata(self, key: str) -> str | None:
        """A short text of the model's metadata."""
        buffer = ctypes.create_string_buffer(256)
        n = ll.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode(errors="replace") if n >= 0 else None

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
        known = self._ends.get(token)
        if known is None:
            known = self._ends[token] = bool(ll.llama_vocab_is_eog(self.vocab, token))
        return known

    def close(self) -> None:
        ll.llama_model_free(self.handle)


class Context:
    """The state of several sequences over a model, and the logits of the last decode."""

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_seq: int,
        n_batch: int,
        n_outputs: int,
        threads: int | None,
        options: ContextOptions,
    ) -> None:
        """`n_ctx`: tokens of all sequences together; `n_outputs`: most tokens of one batch that get logits."""
        params = ll.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_batch
        params.n_seq_max = n_seq
        apply(options, params)
        # Each sequence has cells of its own: what others keep for their next turn costs it no attention.
        params.kv_unified = False
        # A prompt can part from what is known anywhere, also further back than a sliding window
        # (docs/decisions/states-that-cannot-forget.md).
        params.swa_full = True
        # Bounds the logits buffer; a batch that asks for more outputs aborts the process, so `Batch` counts them.
        params.n_outputs_max = n_outputs
        if threads is not None:
            params.n_threads = params.n_threads_batch = threads
        for type_v in _value_types(options):
            params.type_v = type_v
            forget_log()
            self.handle = ll.llama_init_from_model(model.handle, params)
            if self.handle:
                break
        else:
            raise Fault("load_failed", f"llama.cpp cannot make a context of {n_ctx} tokens: {last_errors()}")
        self.model = model
        self._rows: Logits | None = None
        """The logits of the last batch, shape (outputs, n_vocab), once they were asked for."""
        self.can_roll_back = model.can_roll_back
        self.wants_even = model.can_roll_back
        self.n_seq = n_seq
        self.type_v = type_v
        self.state_is_near = not options.offload_kv_cache or _on_cpu()
        """Whether key-value caches lie in the machine's own memory."""
        self.is_changing = False
        """Whether copied or moved cells wait for the next batch, with which llama.cpp changes them."""
        self.batch = Batch(n_batch, n_outputs)
        model.adapt(self.handle)
        self.memory = taken(model)
        self._memory = ll.llama_get_memory(self.handle)
        # A hybrid's oldest position is that of its recurrent state.
        self._window: int = ll.llama_model_n_swa(model.handle) if model.can_roll_back else 0

    def decode(self) -> None:
        """Compute the batch; its outputs' logits can be read until the next one."""
        _recent_errors.clear()
        self._rows = None
        status = ll.llama_decode(self.handle, self.batch.struct)
        if status != 0:
            n = self.batch.size
            raise Fault("engine_failed", f"llama_decode returned {status} for a batch of {n}: {last_errors()}")
        self.is_changing = False

    def logits(self, index: int) -> Logits:
        """Logits of one token of the last batch, shape (n_vocab,); a view that the next decode overwrites."""
        if self._rows is None:
            first = ll.llama_get_logits(self.handle).contents
            n_vocab = self.model.n_vocab
            floats = (ctypes.c_float * (self.batch.outputs * n_vocab)).from_address(ctypes.addressof(first))
            self._rows = np.frombuffer(floats, np.float32).reshape(-1, n_vocab)
        row: Logits = self._rows[self.batch.output(index)]
        return row

    def likeliest(self, index: int) -> int:
        """The likeliest token at one token of the last batch, the first of equals."""
        return int(self.logits(index).argmax())

    def likeliest_with_probability(self, index: int) -> tuple[int, float]:
        """The likeliest token at one token of the last batch, and its softmax probability."""
        logits = self.logits(index)
        token = int(logits.argmax())
        return token, float(1.0 / np.exp(logits - logits[token]).sum())

    def keep(self, seq: int, length: int) -> bool:
        """Forget a sequence from position `length` on; False when this memory cannot forget a part, or when a sliding
        window has moved past and what it sees there is gone."""
        if not ll.llama_memory_seq_rm(self._memory, seq, length, -1):
            return False
        if not self._window or not length:
            return True
        oldest: int = ll.llama_memory_seq_pos_min(self._memory, seq)
        return 0 <= oldest <= max(0, length + 1 - self._window)

    def shift(self, seq: int, start: int, count: int) -> bool:
        """Forget `count` positions from `start` on and move what follows to their place; False when it cannot."""
        if not ll.llama_memory_can_shift(self._memory):
            return False
        if not ll.llama_memory_seq_rm(self._memory, seq, start, start + count):
            return False
        ll.llama_memory_seq_add(self._memory, seq, start + count, -1, -count)
        self.is_changing = True
        return True

    def checkpoint(self, seq: int) -> State:
        """What of a sequence's state cannot be rolled back: a recurrent model's, and a hybrid's recurrent layers'."""
        size = ll.llama_state_seq_get_size_ext(self.handle, seq, _PARTIAL)
        data: State = np.empty(size, np.uint8)
        if not ll.llama_state_seq_get_data_ext(self.handle, data.ctypes.data_as(_BYTES), size, seq, _PARTIAL):
            raise Fault("engine_failed", f"llama.cpp cannot save the state of a sequence: {last_errors()}")
        return data

    def go_back(self, seq: int, length: int, data: State) -> None:
        """Return to a checkpoint of `length` tokens; what can be rolled back is still to be, by `keep`."""
        if not ll.llama_state_seq_set_data_ext(self.handle, data.ctypes.data_as(_BYTES), len(data), seq, _PARTIAL):
            raise Fault("engine_failed", f"llama.cpp cannot restore the state of a sequence: {last_errors()}")

    def forget(self, seq: int) -> None:
        ll.llama_memory_seq_rm(self._memory, seq, -1, -1)

    def copy(self, source: int, target: int) -> None:
        """Give `target`, which is empty, all that `source` holds; cells are copied when the next batch is computed."""
        ll.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.is_changing = True

    def state_size(self, seq: int) -> int:
        """Bytes of a sequence's whole state."""
        return int(ll.llama_state_seq_get_size(self.handle, seq))

    def state(self, seq: int) -> State:
        """All of a sequence's state, as `paceline_llama_cpp_worker.state` describes it."""
        data: State = np.empty(self.state_size(seq), np.uint8)
        if ll.llama_state_seq_get_data(self.handle, data.ctypes.data_as(_BYTES), len(data), seq) != len(data):
            raise Fault("engine_failed", f"llama.cpp cannot save the state of a sequence: {last_errors()}")
        return data

    def restore(self, seq: int, data: State) -> bool:
        """Replace a sequence's state; False when llama.cpp refuses, and the sequence is then empty."""
        return bool(ll.llama_state_seq_set_data(self.handle, data.ctypes.data_as(_BYTES), len(data), seq))

    def close(self) -> None:
        self.batch.close()
        ll.llama_free(self.handle)


def apply(options: ContextOptions, params: Any) -> None:
    """Set what `options` says in a context's parameters."""
    params.flash_attn_type = -1 if options.flash_attention is None else int(options.flash_attention)
    params.offload_kqv = options.offload_kv_cache
    if options.type_k is not None:
        params.type_k = options.type_k
    if options.type_v is not None:
        params.type_v = options.type_v


def taken(model: Model) -> dict[str, int]:
    """What the model and the context made last take, in bytes.

    llama.cpp's interface for C has no such figures but the weights', so they are those of its log, hundredths of a MiB.
    """
    sizes = {"cache": 0.0, "compute": 0.0}
    for kind, size in _buffers:
        if kind in ("output", "compute"):
            sizes["compute"] += size
        elif kind != "model":
            sizes["cache"] += size  # "KV", "RS", and those of single architectures
    return {
        "weights_bytes": model.size,
        "cache_bytes": round(sizes["cache"] * 2**20),
        "compute_bytes": round(sizes["compute"] * 2**20),
    }


def _value_types(options: ContextOptions) -> list[int]:
    """In which types to try to cache the values.

    BF16 makes the CPU's attention compute one token and several alike, and faster (docs/decisions/batches-and-bits.md).
    Models that cache keys and values as one refuse any type but that of the keys.
    """
    if options.type_v is not None:
        return [options.type_v]
    keys = _F16 if options.type_k is None else options.type_k
    if options.flash_attention is False:
        return [_F16]
    return list(dict.fromkeys([_BF16, _F16, keys] if _on_cpu() else [_F16, keys]))


def _on_cpu() -> bool:
    """Whether nothing but the processor can hold anything."""
    return all(device["kind"] in ("cpu", "accelerator") for device in devices())


class Batch:
    """Tokens of several sequences that are computed together."""

    def __init__(self, room: int, outputs: int) -> None:
        self.struct = ll.llama_batch_init(room, 0, 1)
        self.size = 0
        self.outputs = 0
        """How many of its tokens get logits."""
        self._room, self._most_outputs = room, outputs
        self._token = np.ctypeslib.as_array(self.struct.token, (room,))
        self._pos = np.ctypeslib.as_array(self.struct.pos, (room,))
        self._output = np.ctypeslib.as_array(self.struct.logits, (room,))
        np.ctypeslib.as_array(self.struct.n_seq_id, (room,))[:] = 1
        self._seq = [self.struct.seq_id[i] for i in range(room)]
        self._row = [0] * room
        """Of each token that gets logits, how many did before it."""

    @property
    def left(self) -> int:
        """Tokens that still fit."""
        return self._room - self.size

    def clear(self) -> None:
        self.size = self.outputs = self.struct.n_tokens = 0

    def add(self, seq: int, tokens: Sequence[int], start: int, *, outputs: int) -> int:
        """Append `tokens` of `seq` at positions `start`, `start + 1`, ...; the last `outputs` of them get logits.

        Returns the index in the batch of the first token that does.
        """
        first, n = self.size, len(tokens)
        if not (0 < n <= self.left and outputs <= n and self.outputs + outputs <= self._most_outputs):
            raise Fault("engine_failed", f"{n} tokens with {outputs} outputs do not fit the batch of {first}")
        end = first + n
        for i, token in enumerate(tokens, first):
            self._token[i] = token
            self._pos[i] = start + i - first
            self._output[i] = i >= end - outputs
            self._seq[i][0] = seq
        for i in range(end - outputs, end):
            self._row[i] = self.outputs
            self.outputs += 1
        self.size = self.struct.n_tokens = end
        return end - outputs

    def output(self, index: int) -> int:
        """Which row of the logits belongs to a token that gets some."""
        return self._row[index]

    def close(self) -> None:
        ll.llama_batch_free(self.struct)


@ll.llama_log_callback  # type: ignore[untyped-decorator]
def _log_callback(level: int, text: bytes | None, _: object) -> None:
    if level == _LEVEL_INFO and text and b"buffer size = " in text:
        found = _BUFFER.search(text.decode("utf-8", errors="replace"))
        if found:
            _buffers.append((found["kind"], float(found["size"])))
    if level in (_LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUE) and text:
        line = text.decode("utf-8", errors="replace")
        if level != _LEVEL_CONTINUE:
            sys.stderr.write(line)
        if level == _LEVEL_ERROR:
            _recent_errors.append(line.strip())


def forget_log() -> None:
    """Before a call of which `last_errors` or `taken` will be asked."""
    _recent_errors.clear()
    _buffers.clear()


def last_errors() -> str:
    """What llama.cpp complained of in its last calls."""
    return "; ".join(_recent_errors) or "it gave no reason"
