"""What loading a GGUF model takes, told from its metadata.

Weights and caches are as llama.cpp 0.3.36's `llama-kv-cache.cpp`, `llama-memory-recurrent.cpp` and `llama-hparams.cpp`
allocate them, to the byte. The buffers it computes in are the sum of what is alive at the widest point of its graph,
found by measuring models of many shapes.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from paceline import LoadConfig, MemoryEstimate
from paceline.formats.ggml_types import TENSOR_TYPES
from paceline.formats.gguf import GgufMetadata, GgufTensor

# The worker's own defaults (paceline_llama_cpp_worker/backend.py).
DEFAULT_CONTEXT, DEFAULT_EMBEDDING_CONTEXT = 4096, 2048
EMBEDDING_TEXTS = 16
DEFAULT_SLOTS, DEFAULT_POOL, DEFAULT_BATCH = 8, 16384, 512
LEAST_OUTPUTS, OUTPUTS_PER_SLOT = 65, 17
# When long prompts are read in a context of their own (paceline_llama_cpp_worker/reading.py).
READ_APART, LEAST_READING_BATCH, SHORTER_BESIDE = 256, 128, 4

_SIZES = {name.lower(): (block, size) for name, block, size in TENSOR_TYPES.values()}
_CELLS = 256
_FLOAT = 4
_MOST_GPUS = 1024
# Their caches hold more than keys and values, in ways of their own.
_UNKNOWN_CACHES = frozenset(
    {"deepseek32", "deepseek4", "dflash", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3", "qwen4exp"}
)
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_RECURRENT = ("ssm_", "shortconv", "time_mix")


def estimate(
    parts: Sequence[GgufMetadata], config: LoadConfig, *, draft: bool, embedding: bool, cpu: bool, gpu: bool
) -> MemoryEstimate:
    """What loading the model of these files with `config` takes; a `draft` has no more outputs than requests.

    `cpu`: the engine has nothing else to compute on; `gpu`: it has GPUs with memory of their own.
    """
    config = config.for_draft() if draft else config
    model = _Shape(parts)
    trained = max(1, model.number("context_length") or DEFAULT_CONTEXT)
    context = config.context_length or min(trained, DEFAULT_EMBEDDING_CONTEXT if embedding else DEFAULT_CONTEXT)
    slots = 1 if embedding else config.parallel or max(1, min(DEFAULT_SLOTS, DEFAULT_POOL // context))
    outputs = slots if draft else max(LEAST_OUTPUTS, slots * OUTPUTS_PER_SLOT)
    if embedding:
        batch = outputs = context
    else:
        batch = max(config.eval_batch_size or DEFAULT_BATCH, outputs)
    cells = -(-context // _CELLS) * _CELLS
    caches = model.caches(cells, slots, config)
    sequences = (1 if model.is_recurrent else EMBEDDING_TEXTS) if embedding else slots
    compute = model.compute(cells, sequences, min(batch, cells * slots), outputs, config, embedding)
    adapters = sum(adapter.path.stat().st_size for adapter in config.lora or () if adapter.path.is_file())
    weights = sum(model.weights.values()) + adapters
    shares = _shares(config, draft=draft)
    on_gpus = model.on_gpus(shares or (1.0,), caches or {}, compute, config) if gpu else ()
    reading = model.reading(context, cells, slots, config) if cpu and not draft and not embedding else 0
    total = None if caches is None else sum(caches.values())
    return MemoryEstimate(weights, total, compute, sum(on_gpus), context, slots, reading, on_gpus if shares else ())


def _shares(config: LoadConfig, *, draft: bool) -> tuple[float, ...]:
    """The share of each GPU; empty where llama.cpp divides by what is free."""
    if config.main_gpu is not None or draft:
        return (*[0.0] * min(config.main_gpu or 0, _MOST_GPUS), 1.0)
    split = config.tensor_split or ()
    return split if any(split) else ()


class _Shape:
    """The widths and layers of a model."""

    def __init__(self, parts: Sequence[GgufMetadata]) -> None:
        self._head = parts[0]
        self._tensors = {t.name: t for part in parts for t in part.tensors}
        self._arch = self._head.text("general.architecture") or ""

    @cached_property
    def weights(self) -> dict[int | None, int]:
        """Bytes per layer; None is what belongs to no layer."""
        sizes: dict[int | None, int] = {}
        for tensor in self._tensors.values():
            layer, _ = _place(tensor)
            sizes[layer] = sizes.get(layer, 0) + (tensor.size_bytes or 0)
        return sizes

    @cached_property
    def layers(self) -> int:
        """Without those that only predict further tokens."""
        said = (self.number("block_count") or 0) - (self.number("nextn_predict_layers") or 0)
        return min(said, len(self._tensors))  # a file may claim billions

    def number(self, key: str, layer: int = 0) -> int | None:
        """`{architecture}.{key}`; of a list that has one for each layer, the one of `layer`."""
        value = self._head.values.get(f"{self._arch}.{key}")
        if isinstance(value, tuple):
            value = value[layer] if layer < len(value) else None
        return int(value) if isinstance(value, int) else None

    def largest(self, key: str) -> int:
        return max((self.number(key, layer) or 0 for layer in range(max(1, self.layers))), default=0)

    @cached_property
    def is_recurrent(self) -> bool:
        """Whether any layer has a state in place of keys and values."""
        return any(self._kinds(layer).recurrent for layer in range(self.layers))

    def caches(self, cells: int, slots: int, config: LoadConfig) -> dict[int, int] | None:
        """Bytes per layer of keys, values and recurrent state; None for an architecture with another kind of cache."""
        size_k, size_v = (_SIZES.get(t or "f16") for t in (config.cache_type_k, config.cache_type_v))
        if self._arch in _UNKNOWN_CACHES or size_k is None or size_v is None:
            return None
        found: dict[int, int] = {}
        for layer in range(self.layers):
            keys, values = self._attention(layer)
            state = self._state() if self._kinds(layer).recurrent else 0
            attention = keys * size_k[1] // size_k[0] + values * size_v[1] // size_v[0]
            found[layer] = cells * slots * attention + slots * state * _FLOAT
        return found

    def compute(self, cells: int, slots: int, tokens: int, outputs: int, config: LoadConfig, embedding: bool) -> int:
        """Bytes alive at the widest point of the graph, and of the outputs that are kept."""
        embd = self.number("embedding_length") or 0
        row = tokens * _FLOAT
        heads = self.largest("attention.head_count")
        queries = heads * (self.number("attention.key_length") or (embd // heads if heads else 0))
        masks = self._masks() * (tokens if embedding else cells) * tokens
        vocabulary = 0 if embedding else self._vocabulary
        inner = self.number("ssm.inner_size") or (embd if self.number("wkv.head_size") else 0)
        peaks = [
            vocabulary * outputs * _FLOAT + 2 * embd * row + 3 * embd * outputs * _FLOAT,
            self._feed_forward(embd) * row + 2 * masks,
            6.5 * inner * row + 2 * masks + slots * self._state() * _FLOAT,
        ]
        if config.flash_attention is False:
            scores = heads * cells * tokens * _FLOAT
            peaks.append(scores + 4 * masks + int(3 * queries + 2.5 * embd) * row)
        else:
            peaks.append((3 * queries + embd) * row + 2 * masks)
        return int(max(peaks)) + (embd * tokens * _FLOAT if embedding else 0) + self._vocabulary * slots * _FLOAT

    def reading(self, context: int, cells: int, slots: int, config: LoadConfig) -> int:
        """Bytes of the contexts in which the worker reads the longest prompt and, with several slots, the longest that
        is read beside it; 0 where it reads all where it decodes."""
        batch = config.eval_batch_size or DEFAULT_BATCH
        by_choice = config.cache_type_k or config.cache_type_v or config.flash_attention is False
        if by_choice or context <= READ_APART or batch < LEAST_READING_BATCH or not self._caches_all_tokens:
            return 0
        beside = (context - 1) // SHORTER_BESIDE
        beside_cells = -(-beside // _CELLS) * _CELLS if slots > 1 and beside >= READ_APART else 0
        found = 0
        for length in filter(None, (cells, beside_cells)):
            caches = self.caches(length, 1, config)
            if caches is None:
                return 0
            found += sum(caches.values()) + self.compute(length, 1, min(batch, length), 1, config, embedding=False)
        return found

    def on_gpus(
        self, shares: Sequence[float], caches: dict[int, int], compute: int, config: LoadConfig
    ) -> tuple[int, ...]:
        """Bytes on GPUs that take such shares of the layers there: the last `gpu_layers`, the output being one of them.

        A layer goes where its part of the way through them falls in the shares (llama.cpp's `llama-model.cpp`). The
        buffers are counted once, beside the output: that each GPU has some of its own is left out.
        """
        layers = -1 if config.gpu_layers is None else config.gpu_layers
        count = self.layers + 1 if layers < 0 else min(layers, self.layers + 1)
        found = [0] * len(shares)
        ends = [end / sum(shares) for end in accumulate(shares)]
        embedding = self._tensors.get("token_embd.weight")
        output = self._tensors.get("output.weight") or embedding  # tied ones are there a second time
        for place in range(count):
            layer = self.layers + 1 - count + place
            if layer == self.layers:
                taken = ((output.size_bytes or 0) if output else 0) + compute
            else:
                taken = self.weights.get(layer, 0) + (
                    caches.get(layer, 0) if config.offload_kv_cache is not False else 0
                )
            found[bisect_right(ends, place / count)] += taken
        return tuple(found)

    # --- one layer -------------------------------------------------------------------------------------------------

    @cached_property
    def _names(self) -> dict[int, list[str]]:
        names: dict[int, list[str]] = {}
        for tensor in self._tensors.values():
            layer, name = _place(tensor)
            if layer is not None:
                names.setdefault(layer, []).append(name)
        return names

    def _kinds(self, layer: int) -> _Kinds:
        names = self._names.get(layer, [])
        recurrent = any(name.startswith(_RECURRENT) for name in names) or (
            self.number("kda.head_dim") is not None and self.number("attention.head_count_kv", layer) == 0
        )
        # Falcon-H1 has both in every layer; elsewhere what is recurrent has no keys, whatever its tensors are called.
        attends = any(name.startswith("attn_") for name in names) and (not recurrent or self._arch == "falcon-h1")
        shared = self.number("attention.shared_kv_layers")
        return _Kinds(attends and (not shared or layer < self.layers - shared), recurrent)

    def _attention(self, layer: int) -> tuple[int, int]:
        """Numbers a cell holds of keys and of values."""
        heads = self.number("attention.head_count", layer) or 0
        heads_kv = self.number("attention.head_count_kv", layer)
        heads_kv = heads if heads_kv is None else heads_kv
        if not self._kinds(layer).attends or not heads or not heads_kv or self._encoder:
            return 0, 0
        embd = self.number("embedding_length") or 0
        keys = self._width(layer, "attn_k.weight") or heads_kv * (self.number("attention.key_length") or embd // heads)
        if self.number("attention.key_length_mla"):
            return heads_kv * (self.number("attention.key_length") or 0), 0
        values = self._width(layer, "attn_v.weight")
        if values is None and self._width(layer, "attn_k.weight") is not None:
            values = keys  # one projection for both
        return keys, values or heads_kv * (self.number("attention.value_length") or embd // heads)

    def _state(self) -> int:
        """Numbers of recurrent state a layer keeps for one sequence (`n_embd_r` + `n_embd_s`)."""
        embd, heads = self.number("embedding_length") or 0, self.largest("attention.head_count")
        if head := self.number("wkv.head_size"):
            shifts = self.number("token_shift_count")
            return embd * ((2 if shifts is None else shifts) + head)
        if length := self.number("shortconv.l_cache"):
            return embd * (length - 1)
        kernel, inner, state = (self.number(f"ssm.{key}") or 0 for key in ("conv_kernel", "inner_size", "state_size"))
        if head := self.number("kda.head_dim"):
            return 3 * ((kernel or 4) - 1) * heads * head + head * head * heads
        conv = max(0, kernel - 1) * (inner + 2 * (self.number("ssm.group_count") or 0) * state)
        return conv + state * inner

    def _feed_forward(self, embd: int) -> int:
        """Numbers alive for one token in a layer's feed-forward part."""
        wide = self.largest("feed_forward_length")
        up = max((self._width(layer, "ffn_up.weight") or 0 for layer in range(self.layers)), default=0)
        gated = up > wide or any("ffn_gate.weight" in names for names in self._names.values())
        dense = (3 if gated else 1) * wide
        used, expert = self.number("expert_used_count") or 0, self.number("expert_feed_forward_length") or wide
        experts = used * max(3 * expert, expert + 2 * embd)
        return max(dense, experts) + (2 if self._encoder else 4) * embd

    def _width(self, layer: int, name: str) -> int | None:
        """Rows of a matrix of a layer."""
        tensor = self._tensors.get(f"blk.{layer}.{name}")
        return tensor.shape[1] if tensor is not None and len(tensor.shape) == 2 else None

    def _masks(self) -> int:
        """Attention masks: one for each kind of attention."""
        if not self.largest("attention.head_count"):
            return 0
        return 2 if self.number("attention.sliding_window") and self._arch != "llama" else 1

    @property
    def _caches_all_tokens(self) -> bool:
        """One cell for every token, whose keys and values can have different types."""
        kinds = [self._kinds(layer) for layer in range(self.layers)]
        attends = any(kind.attends for kind in kinds) and not any(kind.recurrent for kind in kinds)
        return attends and self._masks() == 1 and not self.number("attention.key_length_mla")

    @property
    def _vocabulary(self) -> int:
        embedding = self._tensors.get("token_embd.weight")
        return embedding.shape[1] if embedding is not None and len(embedding.shape) == 2 else 0

    @property
    def _encoder(self) -> bool:
        return self._head.flag(f"{self._arch}.attention.causal") is False


@dataclass(frozen=True)
class _Kinds:
    attends: bool
    """Keeps keys and values of its own."""
    recurrent: bool


def _place(tensor: GgufTensor) -> tuple[int | None, str]:
    match = _BLOCK.fullmatch(tensor.name)
    return (int(match[1]), match[2]) if match else (None, tensor.name)
