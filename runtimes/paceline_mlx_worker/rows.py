"""The state of several sequences side by side, so that one forward pass advances all of them.

mlx-lm's own batch caches align sequences at their ends and trim all of them alike; here each row begins at column 0 and
is rolled back on its own, as verifying drafts of different lengths needs, and a row's columns are the same whoever else
is in the batch. A sliding window's row is a ring with a margin: what a draft or the next prompt takes back is still
there. A recurrent layer's state is kept whole for each row and cannot be rolled back, only saved and restored.

The shapes are mlx-lm's: keys and values (rows, heads, columns, dimension), masks (rows, 1, tokens, columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import mlx.core as mx
from mlx_lm.models import cache as caches

MARGIN = 768
"""Tokens that a sliding window remembers beyond itself: the longest chunk of a prompt, and some to take back."""

_STEP = 256
"""Columns grow by so many."""
_GRAIN = 64
"""Columns are read in multiples of this, so that sums over them are formed alike in every batch."""


class NotSideBySideError(Exception):
    """These layers' state cannot be kept in rows."""


@dataclass(frozen=True)
class Precision:
    """Keys and values quantized as `mx.quantize` does, instead of in the model's own type."""

    bits: int
    group_size: int


class Rows:
    """A model's state for several sequences. Lanes are numbered from 0."""

    count: int | None = None
    """How many sequences there can be; None for any number."""

    def __init__(self, net: Any, precision: Precision | None = None) -> None:
        """Raises `NotSideBySideError` for a model whose layers remember in other ways."""
        self._layers: list[_Layer] = [_layer(entry, precision) for entry in caches.make_prompt_cache(net)]
        self.can_roll_back: bool = all(layer.can_roll_back for layer in self._layers)
        self.can_pad = self.can_roll_back
        """Whether sequences with different numbers of new tokens can share a pass."""
        self._written: dict[int, int] = {}

    def caches(self, lanes: Sequence[int], starts: Sequence[int], size: int) -> list[Any]:
        """What the model takes as its cache to read `size` tokens of each lane, from position `starts` on."""
        batch = _Pass(tuple(lanes), tuple(starts), size, tuple(self._written.get(lane, 0) for lane in lanes))
        for lane, end in zip(lanes, batch.written, strict=True):
            self._written[lane] = end
        return [layer.enter(batch) for layer in self._layers]

    def leave(self) -> list[Any]:
        """The pass is built; returns the arrays to compute when no logits are."""
        return [array for layer in self._layers for array in layer.leave()]

    def keep(self, lane: int, length: int, held: int) -> bool:
        """Forget what follows the first `length` of a lane's `held` tokens; False when that cannot be."""
        return all(layer.keeps(length, held, self._written.get(lane, 0)) for layer in self._layers)

    def checkpoint(self, lane: int) -> list[Any]:
        """What of a lane's state cannot be rolled back: that of its recurrent layers."""
        return [layer.checkpoint(lane) for layer in self._layers]

    def go_back(self, lane: int, saved: list[Any]) -> None:
        """Return to a checkpoint; what can be rolled back is still to be, by `keep`."""
        for layer, state in zip(self._layers, saved, strict=True):
            layer.go_back(lane, state)

    def forget(self, lane: int) -> None:
        self._written.pop(lane, None)
        for layer in self._layers:
            layer.forget(lane)

    def copy(self, source: int, target: int) -> None:
        """Give `target` all that `source` holds."""
        self._written[target] = self._written.get(source, 0)
        for layer in self._layers:
            layer.copy(source, target)

    def state_size(self, lane: int, held: int) -> int:
        """Bytes of what `state` gives."""
        return sum(layer.state_size(lane, held) for layer in self._layers)

    def state(self, lane: int, held: int) -> tuple[int, list[Any]]:
        """A copy of all that remembers a lane's `held` tokens."""
        return self._written.get(lane, 0), [layer.state(lane, held) for layer in self._layers]

    def restore(self, lane: int, state: tuple[int, list[Any]]) -> None:
        """Give a lane such a state."""
        self._written[lane], states = state
        for layer, saved in zip(self._layers, states, strict=True):
            layer.restore(lane, saved)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self._layers)


class _Pass:
    """Which tokens of which lanes a forward pass reads, in the forms the layers need."""

    def __init__(self, lanes: tuple[int, ...], starts: tuple[int, ...], size: int, written: tuple[int, ...]) -> None:
        self.lanes, self.starts, self.size = lanes, starts, size
        self.end = max(starts) + size
        self.written = tuple(max(w, start + size) for w, start in zip(written, starts, strict=True))
        """For each lane the end of all positions ever written, those of this pass included."""
        self.offsets = mx.array(starts) if len(starts) > 1 else starts[0]
        self.adjacent = all(b == a + 1 for a, b in pairwise(lanes))
        self._row_index = mx.array(lanes)
        self._columns: dict[int | None, Any] = {}
        self._masks: dict[tuple[int | None, int | None, int], Any] = {}

    def read(self, buffer: Any, columns: int) -> Any:
        """The lanes' rows of a buffer, the first `columns` of each."""
        if self.adjacent:
            return buffer[self.lanes[0] : self.lanes[-1] + 1, :, :columns]
        return mx.take(buffer[:, :, :columns], self._row_index, axis=0)

    def write(self, buffer: Any, new: Any, ring: int | None) -> Any:
        """Put `new`, shape (lanes, heads, size, dimension), into the lanes' next columns; `ring` is their number."""
        first = self.starts[0] if ring is None else self.starts[0] % ring
        if len(self.lanes) == 1 and (ring is None or first + self.size <= ring):
            lane = self.lanes[0]
            buffer[lane : lane + 1, :, first : first + self.size] = new
        else:
            buffer[self._row_index[:, None], :, self._places(ring)] = new.transpose(0, 2, 1, 3)
        return buffer

    def mask(self, columns: int, ring: int | None, window: int | None) -> Any:
        """Which columns each token may look at: those of its own and earlier positions, within the window."""
        key = (ring, window, columns)
        if key not in self._masks:
            starts = mx.array(self.starts)[:, None]
            asked = (starts + mx.arange(self.size)[None])[:, None, :, None]
            held = mx.arange(columns)[None]
            if ring is not None and max(self.written) > ring:
                last = mx.array(self.written)[:, None] - 1
                held = last - (last - held) % ring
            held = held[:, None, None, :]
            mask = (held <= asked) & (held >= 0)
            if window is not None:
                mask = mask & (held > asked - window)
            self._masks[key] = mask
        return self._masks[key]

    def _places(self, ring: int | None) -> Any:
        if ring not in self._columns:
            places = mx.array(self.starts)[:, None] + mx.arange(self.size)[None]
            self._columns[ring] = places if ring is None else places % ring
        return self._columns[ring]


class _Attention:
    """Keys and values of one layer, all of them or those of a sliding window."""

    can_roll_back: bool = True

    def __init__(self, window: int | None) -> None:
        self._window = window
        self._ring = None if window is None else -(-(window + MARGIN) // _GRAIN) * _GRAIN
        self._buffers: list[Any] = []
        self._pass: _Pass | None = None

    # --- what models call ------------------------------------------------------------------------------------------

    @property
    def offset(self) -> Any:
        """Position of the first token of the pass, an array if there are several lanes."""
        return self._batch.offsets

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:
        return self._batch.mask(self._columns(), self._ring, window_size or self._window)

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        new = self._pack(keys, values)
        self._reserve(new)
        batch = self._batch
        self._buffers = [batch.write(b, n, self._ring) for b, n in zip(self._buffers, new, strict=True)]
        mx.async_eval(self._buffers)  # layers below are computed while the model's code builds those above
        columns = self._columns()
        return self._unpack([batch.read(buffer, columns) for buffer in self._buffers])

    # --- what rows call --------------------------------------------------------------------------------------------

    def enter(self, batch: _Pass) -> Any:
        self._pass = batch
        return self

    def leave(self) -> list[Any]:
        self._pass = None
        return self._buffers

    def keeps(self, length: int, held: int, written: int) -> bool:
        """Whether positions before `length` are all still there, as far as a later token may look at them."""
        if self._ring is None or self._window is None or written <= self._ring:
            return True
        return max(0, length - self._window + 1) >= written - self._ring

    def checkpoint(self, lane: int) -> None:
        """All of it can be rolled back."""

    def go_back(self, lane: int, saved: None) -> None: ...

    def forget(self, lane: int) -> None:
        """What a lane held is overwritten by what comes."""

    def copy(self, source: int, target: int) -> None:
        if self._buffers and source < self._buffers[0].shape[0]:
            self._grow(target + 1, self._buffers[0].shape[2])
            for buffer in self._buffers:
                buffer[target : target + 1] = buffer[source : source + 1]

    def state_size(self, lane: int, held: int) -> int:
        return sum(part.nbytes for part in self._held(lane, held))

    def state(self, lane: int, held: int) -> list[Any]:
        parts = [mx.contiguous(part) for part in self._held(lane, held)]
        mx.eval(parts)  # or they would keep the whole buffers alive
        return parts

    def restore(self, lane: int, saved: list[Any]) -> None:
        if not saved:
            return
        self._grow(lane + 1, saved[0].shape[2])
        for buffer, part in zip(self._buffers, saved, strict=True):
            buffer[lane : lane + 1, :, : part.shape[2]] = part

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers)

    @property
    def _batch(self) -> _Pass:
        assert self._pass is not None
        return self._pass

    def _held(self, lane: int, held: int) -> list[Any]:
        """The part of the buffers that holds a lane's tokens; of a ring all that is there."""
        if not self._buffers or lane >= self._buffers[0].shape[0]:
            return []
        columns = held if self._ring is None else self._buffers[0].shape[2]
        return [buffer[lane : lane + 1, :, :columns] for buffer in self._buffers]

    def _columns(self) -> int:
        """How many columns the pass reads."""
        columns = -(-self._batch.end // _GRAIN) * _GRAIN
        return columns if self._ring is None else min(columns, self._ring)

    def _reserve(self, new: Sequence[Any]) -> None:
        columns = -(-self._columns() // _STEP) * _STEP
        if self._ring is not None:
            columns = min(columns, self._ring)
        if not self._buffers:
            self._buffers = [mx.zeros((0, n.shape[1], 0, n.shape[3]), n.dtype) for n in new]
        self._grow(max(self._batch.lanes) + 1, columns)

    def _grow(self, rows: int, columns: int) -> None:
        have_rows, _, have_columns, _ = self._buffers[0].shape
        more_rows, more_columns = max(0, rows - have_rows), max(0, columns - have_columns)
        if more_rows or more_columns:
            widths = [(0, more_rows), (0, 0), (0, more_columns), (0, 0)]
            self._buffers = [mx.pad(buffer, widths) for buffer in self._buffers]

    def _pack(self, keys: Any, values: Any) -> list[Any]:
        return [keys, values]

    def _unpack(self, arrays: list[Any]) -> tuple[Any, Any]:
        return arrays[0], arrays[1]


class _QuantizedAttention(_Attention):
    """Keys and values in few bits; mlx-lm's attention knows such a cache by `bits`."""

    def __init__(self, window: int | None, precision: Precision) -> None:
        super().__init__(window)
        self.bits, self.group_size = precision.bits, precision.group_size

    def _pack(self, keys: Any, values: Any) -> list[Any]:
        return [part for array in (keys, values) for part in mx.quantize(array, self.group_size, self.bits)]

    def _unpack(self, arrays: list[Any]) -> tuple[Any, Any]:
        return tuple(arrays[:3]), tuple(arrays[3:])


class _Recurrent:
    """A layer's state after all tokens read; earlier ones are gone."""

    can_roll_back: bool = False

    def __init__(self, size: int) -> None:
        self._size = size
        self._states: dict[int, list[Any]] = {}
        self._lanes: tuple[int, ...] = ()
        self._cache: Any = None

    def enter(self, batch: _Pass) -> Any:
        self._lanes = batch.lanes
        alone = [caches.ArraysCache(self._size) for _ in batch.lanes]
        for cache, lane in zip(alone, batch.lanes, strict=True):
            cache.cache = list(self._states.get(lane, cache.cache))
        self._cache = alone[0] if len(alone) == 1 else caches.ArraysCache.merge(alone)
        self._cache.left_padding = None
        return self._cache

    def leave(self) -> list[Any]:
        state = self._cache.cache
        for i, lane in enumerate(self._lanes):
            self._states[lane] = [None if a is None else a[i : i + 1] for a in state] if len(self._lanes) > 1 else state
        return [array for array in state if array is not None]

    def keeps(self, length: int, held: int, written: int) -> bool:
        return length == held

    def checkpoint(self, lane: int) -> list[Any]:
        """The arrays themselves: a pass makes new ones."""
        return list(self._states[lane])

    def go_back(self, lane: int, saved: list[Any]) -> None:
        self._states[lane] = list(saved)

    def forget(self, lane: int) -> None:
        self._states.pop(lane, None)

    def copy(self, source: int, target: int) -> None:
        if source in self._states:
            self._states[target] = list(self._states[source])

    def state_size(self, lane: int, held: int) -> int:
        return sum(array.nbytes for array in self._states.get(lane, []) if array is not None)

    def state(self, lane: int, held: int) -> list[Any]:
        return self.checkpoint(lane)

    def restore(self, lane: int, saved: list[Any]) -> None:
        self.go_back(lane, saved)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for state in self._states.values() for array in state if array is not None)


class _Several:
    """The parts of a layer that remembers in several ways."""

    def __init__(self, parts: Sequence[_Layer]) -> None:
        self._parts = parts
        self.can_roll_back: bool = all(part.can_roll_back for part in parts)

    def enter(self, batch: _Pass) -> Any:
        return caches.CacheList(*(part.enter(batch) for part in self._parts))

    def leave(self) -> list[Any]:
        return [array for part in self._parts for array in part.leave()]

    def keeps(self, length: int, held: int, written: int) -> bool:
        return all(part.keeps(length, held, written) for part in self._parts)

    def checkpoint(self, lane: int) -> list[Any]:
        return [part.checkpoint(lane) for part in self._parts]

    def go_back(self, lane: int, saved: list[Any]) -> None:
        for part, state in zip(self._parts, saved, strict=True):
            part.go_back(lane, state)

    def forget(self, lane: int) -> None:
        for part in self._parts:
            part.forget(lane)

    def copy(self, source: int, target: int) -> None:
        for part in self._parts:
            part.copy(source, target)

    def state_size(self, lane: int, held: int) -> int:
        return sum(part.state_size(lane, held) for part in self._parts)

    def state(self, lane: int, held: int) -> list[Any]:
        return [part.state(lane, held) for part in self._parts]

    def restore(self, lane: int, saved: list[Any]) -> None:
        for part, state in zip(self._parts, saved, strict=True):
            part.restore(lane, state)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)


_Layer = _Attention | _Recurrent | _Several


def _layer(entry: Any, precision: Precision | None) -> _Layer:
    """What stands for a layer's cache as mlx-lm makes it."""
    kind = type(entry)
    if kind is caches.KVCache or (kind is caches.RotatingKVCache and entry.keep == 0):
        window = entry.max_size if kind is caches.RotatingKVCache else None
        return _Attention(window) if precision is None else _QuantizedAttention(window, precision)
    if kind is caches.ArraysCache:
        return _Recurrent(len(entry.cache))
    if kind is caches.CacheList:
        return _Several([_layer(part, precision) for part in entry.caches])
    raise NotSideBySideError(f"a {kind.__name__} cannot be kept in rows")
