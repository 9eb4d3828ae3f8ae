"""The state of one sequence as llama.cpp writes it, and the same for a context that caches values in another type.

Format (`llama_kv_cache::state_write` in llama.cpp's src/llama-kv-cache.cpp), native byte order:

    u32 magic, i32 sequence, u32 streams, then for every stream:
        u32 cells; nothing more if 0
        cells x (i32 position, u32 1, i32 sequence)
        u32 values are transposed, u32 layers
        layers x (i32 type of the keys, u64 bytes per cell, the keys cell by cell)
        layers x (i32 type of the values, u64 bytes per cell, the values cell by cell)

Caches of other kinds (sliding window, recurrent) write something else and are not read here.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

F16, BF16 = 1, 30
"""ggml's types that values can be changed between."""

_HEAD, _CELL = 8, 12


class Unreadable(Exception):
    """The state does not have the form described above."""


def with_values(state: Bytes, type_v: int, *, streams: int) -> Bytes:
    """`state` for a context of `streams` sequences that caches values as `type_v`, rounded to the nearest.

    Raises Unreadable for a state that is not as described above.
    """
    source = _Source(state)
    parts = [source.take(_HEAD)]
    held = []
    for _ in range(source.number()):
        if cells := source.number():
            held.append(_u32(streams, cells))
            held += _stream(source, cells, type_v)
            held.append(_u32(*[0] * (streams - 1)))
    if len(held) == 0 or source.left:
        raise Unreadable(f"{len(state)} bytes, of which {source.left} are left over")
    whole: Bytes = np.concatenate([*parts, *held])
    return whole


class _Source:
    """Takes one part after the other."""

    def __init__(self, state: Bytes) -> None:
        self._state, self._at = state, 0

    @property
    def left(self) -> int:
        return len(self._state) - self._at

    def take(self, size: int) -> Bytes:
        if size > self.left:
            raise Unreadable(f"{size} bytes are missing at {self._at}")
        self._at += size
        return self._state[self._at - size : self._at]

    def number(self, kind: type[np.integer[Any]] = np.uint32) -> int:
        return int(self.take(kind(0).nbytes).copy().view(kind)[0])


def _stream(source: _Source, cells: int, type_v: int) -> list[Bytes]:
    parts = [source.take(cells * _CELL)]
    if source.number():
        raise Unreadable("transposed values")
    layers = source.number()
    parts.append(_u32(0, layers))
    for _ in range(layers):
        kind, size = source.number(), source.number(np.uint64)
        parts += [_u32(kind), _u64(size), source.take(cells * size)]
    for _ in range(layers):
        kind, size = source.number(), source.number(np.uint64)
        parts += [_u32(type_v), _u64(size), _retyped(source.take(cells * size), kind, type_v)]
    return parts


def _retyped(values: Bytes, kind: int, wanted: int) -> Bytes:
    if kind == wanted:
        return values
    if {kind, wanted} == {F16, BF16}:
        return _bytes(_table(kind)[values.copy().view(np.uint16)])
    raise Unreadable(f"values of type {kind}")


@cache
def _table(kind: int) -> Any:
    """Each of the 65,536 values of `kind` in the other type, shape (65536,), as 16 bits without sign."""
    every: Any = np.arange(1 << 16, dtype=np.uint32)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == BF16:
            return (every << 16).view(np.float32).astype(np.float16).view(np.uint16)
        bits = every.astype(np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _u32(*numbers: int) -> Bytes:
    return _bytes(np.array(numbers, np.uint32))


def _u64(number: int) -> Bytes:
    return _bytes(np.array([number], np.uint64))


def _bytes(array: np.ndarray[Any, Any]) -> Bytes:
    raw: Bytes = array.view(np.uint8)
    return raw
