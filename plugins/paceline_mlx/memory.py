"""What an MLX model takes, told from config.json and the headers of its weights.

Unlike llama.cpp, mlx-lm's caches grow as contexts fill: the estimate is what full contexts take. What it computes in is
not known beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline import LoadConfig, MemoryEstimate
from paceline.formats.bounded_json import read_json
from paceline.formats.mlx import MlxFormat
from paceline.formats.safetensors import SafeTensor, read_safetensors

# The worker's own defaults (paceline_mlx_worker/backend.py), and the margin of its sliding windows (rows.py).
DEFAULT_CONTEXT, DEFAULT_SLOTS, DEFAULT_POOL = 4096, 8, 16384
DEFAULT_EMBEDDING_CONTEXT = 2048
MARGIN, STEP, GRAIN = 768, 256, 64

_CONFIG_BYTES = 1 << 22
_MAX_LAYERS = 4096
_NUMBER_BYTES = {"F16": 2, "BF16": 2, "F32": 4}
_CACHE_BITS = {"q8_0": 8, "q4_0": 4}
# Marks of layers whose state is something else than keys and values of every token.
_OTHER_STATE = re.compile(
    r"mamba|ssm|linear_|conv_|kv_lora|state_size|wkv|lru_|rglru|recurrent|kv_shared|attention_chunk"
)


def estimate(folder: Path, config: LoadConfig, *, embedding: bool = False) -> MemoryEstimate:
    """What loading the model in `folder` with `config` takes once its contexts are full; embeddings need none."""
    said = read_json(folder / "config.json", _CONFIG_BYTES)
    inner = said.get("text_config")
    shape = _Shape({**said, **inner} if isinstance(inner, dict) else said)
    tensors: dict[str, SafeTensor] = {}
    for file in MlxFormat().files(folder):
        if file.name.endswith(".safetensors"):
            tensors |= read_safetensors(file)
    trained = shape.number("max_position_embeddings") or DEFAULT_CONTEXT
    context = config.context_length or min(trained, DEFAULT_EMBEDDING_CONTEXT if embedding else DEFAULT_CONTEXT)
    slots = 1 if embedding else config.parallel or max(1, min(DEFAULT_SLOTS, DEFAULT_POOL // context))
    cache = 0 if embedding else shape.cache(context, slots, _number_bytes(list(tensors.values())), config)
    for adapter in config.lora or ():
        if (file := adapter.path / "adapters.safetensors").is_file():
            tensors |= read_safetensors(file)  # a full fine-tuning's replace the model's own
    weights = sum(tensor.size_bytes for tensor in tensors.values())
    return MemoryEstimate(weights, cache, None, context_length=context, parallel=slots)


@dataclass(frozen=True)
class _Shape:
    config: Mapping[str, Any]

    def number(self, key: str) -> int | None:
        value = self.config.get(key)
        return value if type(value) is int and value > 0 else None

    def cache(self, context: int, slots: int, number_bytes: int | None, config: LoadConfig) -> int | None:
        """Bytes of keys and values; None for layers that keep something else."""
        layers, heads = self.number("num_hidden_layers"), self.number("num_attention_heads")
        hidden = self.number("hidden_size")
        if number_bytes is None or None in (layers, heads, hidden) or any(_OTHER_STATE.search(k) for k in self._said()):
            return None
        assert layers is not None
        assert heads is not None
        assert hidden is not None
        head = self.number("head_dim") or hidden // heads
        windows = self._windows(layers) if layers <= _MAX_LAYERS else None
        if windows is None:
            return None
        width = (self.number("num_key_value_heads") or heads) * head
        bits = _CACHE_BITS.get(config.cache_type_k or config.cache_type_v or "")
        # Two numbers go with every group of quantized ones.
        group = 64 if head % 64 == 0 else 32
        column = width * number_bytes if bits is None else width * bits // 8 + 2 * number_bytes * (width // group)
        return 2 * slots * column * sum(_columns(context, window) for window in windows)

    def _said(self) -> list[str]:
        return [key for key, value in self.config.items() if value not in (None, 0, False)]

    def _windows(self, layers: int) -> list[int | None] | None:
        """The sliding window of every layer, None where it has none; None when that is not known."""
        window, kinds, pattern = (
            self.config.get(k) for k in ("sliding_window", "layer_types", "sliding_window_pattern")
        )
        if isinstance(kinds, list) and len(kinds) == layers:
            if not set(map(str, kinds)) <= {"full_attention", "sliding_attention"}:
                return None
            return [self.number("sliding_window") if kind == "sliding_attention" else None for kind in kinds]
        if type(pattern) is int and pattern > 0 and type(window) is int:
            return [None if (i + 1) % pattern == 0 else window for i in range(layers)]
        # Whether a window that is said nothing more of is used is the model's code's to know.
        return None if window and self.config.get("use_sliding_window") is not False else [None] * layers


def _columns(context: int, window: int | None) -> int:
    """Tokens that a layer keeps of a full context."""
    whole = -(-context // STEP) * STEP
    return whole if window is None else min(whole, -(-(window + MARGIN) // GRAIN) * GRAIN)


def _number_bytes(tensors: Sequence[SafeTensor]) -> int | None:
    """Bytes of the numbers it computes with: those of its weights that are not packed."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        if tensor.dtype in _NUMBER_BYTES:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size_bytes
    return _NUMBER_BYTES[max(sizes, key=lambda dtype: sizes[dtype])] if sizes else None
