"""How a model is enlarged without changing what it computes.

The enlarged model has the cost of a model of its size and the mind of the small one, so a draft of the small model is
accepted as often as with the small model. How it is done, for a Llama of hidden size d enlarged to D:

- The residual stream is padded with zeros. RMS norm divides by sqrt(mean(x^2) + epsilon), and the mean of the padded
  vector is d/D of the real one, so the norm's weights are multiplied by sqrt(d/D) and epsilon by d/D.
- The real attention heads keep their key-value head: query head i of group g goes to place i of group g of the larger
  grouping. Heads, feed-forward units and layers that are added have random weights, and zeros where they would write
  to the residual stream. Their work is done and has no effect.

The tensors have GGUF's names and layouts; who writes another format renames them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np

from paceline.errors import UsageError

Array: TypeAlias = "np.ndarray[Any, Any]"

SEED = 20
_DEVIATION = 0.02


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Planned:
    """A tensor to write; its weights are made when its turn comes, so that one at a time is in memory."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as numpy has it."""
    make: Callable[[], Array]


@dataclass(frozen=True)
class Source:
    """A Llama in a GGUF file: its metadata and its tensors by name."""

    reader: gguf.GGUFReader
    shape: Shape
    weights: Mapping[str, gguf.ReaderTensor]

    @classmethod
    def read(cls, path: Path) -> Source:
        """Raises UsageError for another architecture and for tensors that a plain Llama does not have."""
        reader = gguf.GGUFReader(path)
        return cls(reader, _shape(reader), {t.name: t for t in reader.tensors})

    def value(self, key: str) -> Any:
        """Of one key of the metadata. Raises UsageError when it is missing."""
        return _value(self.reader, key)

    def as_it_is(self) -> list[Planned]:
        """Its tensors, 16-bit matrices and 32-bit norms."""
        return [Planned(t.name, _rows_first(t), lambda t=t: _halved(dequantized(t))) for t in self.weights.values()]  # type: ignore[misc]

    def with_random_weights(self) -> list[Planned]:
        """Tensors of the same names and shapes: norms as they are, matrices of noise."""
        random = np.random.default_rng(SEED)

        def make(tensor: gguf.ReaderTensor) -> Array:
            shape = _rows_first(tensor)
            return dequantized(tensor) if len(shape) == 1 else noise(random, shape)

        return [Planned(t.name, _rows_first(t), lambda t=t: make(t)) for t in self.weights.values()]  # type: ignore[misc]

    def enlarged(self, shape: Shape) -> list[Planned]:
        """The tensors of a model of `shape` that computes the same. Raises UsageError if it cannot hold this one."""
        _check(self.shape, shape)
        return list(_Enlargement(self.shape, shape, self.weights).tensors())

    def epsilon(self, shape: Shape) -> float:
        """Of the norms of a model of `shape`."""
        return float(self.value("llama.attention.layer_norm_rms_epsilon")) * self.shape.hidden / shape.hidden


def noise(random: Any, shape: tuple[int, ...]) -> Array:
    """Random 16-bit weights of the size that a model's have at its birth."""
    weights: Array = random.standard_normal(shape, dtype=np.float32)
    weights *= _DEVIATION
    halves: Array = weights.astype(np.float16)
    return halves


def dequantized(tensor: gguf.ReaderTensor) -> Array:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def _rows_first(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _halved(weights: Array) -> Array:
    return weights if weights.ndim == 1 else weights.astype(np.float16)


class _Enlargement:
    def __init__(self, small: Shape, large: Shape, weights: Mapping[str, gguf.ReaderTensor]) -> None:
        self._small = small
        self._large = large
        self._weights = weights
        self._index = 0

    def tensors(self) -> Iterator[Planned]:
        small, large = self._small, self._large
        vocabulary = dequantized(self._weights["token_embd.weight"]).shape[0]
        for name in ("token_embd.weight", "output.weight"):
            if name in self._weights:
                yield self._placed(name, (vocabulary, large.hidden), filled=False)
        yield self._norm("output_norm.weight")
        heads = self._rows_of_heads(small.heads, small.group, large.group)
        kv_heads = self._rows_of_heads(small.kv_heads, 1, 1)
        for layer in range(large.layers):
            prefix = f"blk.{layer}"
            queries, keys = large.heads * large.head, large.kv_heads * large.head
            yield self._norm(f"{prefix}.attn_norm.weight")
            yield self._placed(f"{prefix}.attn_q.weight", (queries, large.hidden), rows=heads)
            yield self._placed(f"{prefix}.attn_k.weight", (keys, large.hidden), rows=kv_heads)
            yield self._placed(f"{prefix}.attn_v.weight", (keys, large.hidden), rows=kv_heads)
            yield self._placed(f"{prefix}.attn_output.weight", (large.hidden, queries), columns=heads, filled=False)
            yield self._norm(f"{prefix}.ffn_norm.weight")
            yield self._placed(f"{prefix}.ffn_gate.weight", (large.feed_forward, large.hidden))
            yield self._placed(f"{prefix}.ffn_up.weight", (large.feed_forward, large.hidden))
            yield self._placed(f"{prefix}.ffn_down.weight", (large.hidden, large.feed_forward), filled=False)

    def _rows_of_heads(self, count: int, small_group: int, large_group: int) -> Array:
        """Where the rows of the real heads lie among those of the larger model."""
        size = self._large.head
        places = [(i // small_group) * large_group + i % small_group for i in range(count)]
        rows: Array = np.concatenate([np.arange(p * size, (p + 1) * size) for p in places])
        return rows

    def _placed(
        self,
        name: str,
        shape: tuple[int, int],
        *,
        rows: Array | None = None,
        columns: Array | None = None,
        filled: bool = True,
    ) -> Planned:
        """A matrix with the real weights at `rows` and `columns` (the first ones unless given) and, around them,
        random ones if `filled`, zeros otherwise."""
        random = np.random.default_rng([SEED, self._index])
        self._index += 1

        def make() -> Array:
            matrix: Array = noise(random, shape) if filled else np.zeros(shape, np.float16)
            if name in self._weights:
                real: Array = dequantized(self._weights[name]).astype(np.float16)
                at_rows = np.arange(real.shape[0]) if rows is None else rows
                at_columns = np.arange(real.shape[1]) if columns is None else columns
                matrix[np.ix_(at_rows, at_columns)] = real
            return matrix

        return Planned(name, shape, make)

    def _norm(self, name: str) -> Planned:
        def make() -> Array:
            weights: Array = np.ones(self._large.hidden, np.float32)
            if name in self._weights:
                weights[: self._small.hidden] = dequantized(self._weights[name])
            weights *= np.float32(math.sqrt(self._small.hidden / self._large.hidden))
            return weights

        return Planned(name, (self._large.hidden,), make)


def _shape(reader: gguf.GGUFReader) -> Shape:
    if _value(reader, "general.architecture") != "llama":
        raise UsageError("only models of the llama architecture can be enlarged")
    known = re.compile(
        r"(token_embd|output_norm|output|blk\.\d+\.(attn_(norm|q|k|v|output)|ffn_(norm|gate|up|down)))\.weight"
    )
    strange = [t.name for t in reader.tensors if not known.fullmatch(t.name)]
    if strange:
        raise UsageError(f"the model has tensors that this tool cannot place: {', '.join(strange[:3])}")
    return Shape(
        hidden=int(_value(reader, "llama.embedding_length")),
        layers=int(_value(reader, "llama.block_count")),
        heads=int(_value(reader, "llama.attention.head_count")),
        kv_heads=int(_value(reader, "llama.attention.head_count_kv")),
        feed_forward=int(_value(reader, "llama.feed_forward_length")),
    )


def _check(small: Shape, large: Shape) -> None:
    if small.head != large.head:
        raise UsageError(f"the heads have {small.head} dimensions and would have {large.head}: they must be equal")
    if small.group > large.group or any(a > b for a, b in zip(astuple(small), astuple(large), strict=True)):
        raise UsageError(f"{large} is smaller than {small} in some size")


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise UsageError(f"the model has no {key}")
    return field.contents()
