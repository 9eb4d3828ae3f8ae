"""Which memory a model gets: rows side by side where its layers allow, else mlx-lm's own caches for one sequence."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import cache as caches

from paceline_mlx_worker.rows import NotSideBySideError, Precision, Rows
from paceline_worker.protocol import Fault

_GROUP_SIZES = (64, 32)
_NOISE = 0.05
"""Part of the logits' range that rounding in another order may move one of them."""


class Memory(Protocol):
    """The state of a model's sequences. Lanes are numbered from 0."""

    count: int | None
    """How many sequences there can be; None for any number."""
    can_roll_back: bool
    can_pad: bool
    """Whether lanes with different numbers of new tokens can share a pass."""

    def caches(self, lanes: Sequence[int], starts: Sequence[int], size: int) -> list[Any]:
        """What the model takes as its cache to read `size` tokens of each lane, from position `starts` on."""

    def leave(self) -> list[Any]:
        """The pass is built; returns the arrays to compute when no logits are."""

    def keep(self, lane: int, length: int, held: int) -> bool:
        """Forget what follows the first `length` of a lane's `held` tokens; False when that cannot be."""

    def checkpoint(self, lane: int) -> Any:
        """What of a lane's state cannot be rolled back, as it is now."""

    def go_back(self, lane: int, saved: Any) -> None:
        """Return to a checkpoint; what can be rolled back is still to be, by `keep`."""

    def forget(self, lane: int) -> None: ...

    def copy(self, source: int, target: int) -> None:
        """Give `target` all that `source` holds."""

    def state_size(self, lane: int, held: int) -> int:
        """Bytes of what `state` gives."""

    def state(self, lane: int, held: int) -> Any:
        """A copy of all that remembers a lane's `held` tokens."""

    def restore(self, lane: int, state: Any) -> None:
        """Give a lane such a state."""


class Plain:
    """mlx-lm's caches, for layers that remember in ways of their own."""

    count: int | None = 1
    can_pad = False

    def __init__(self, net: Any) -> None:
        self._net = net
        self._caches: list[Any] = caches.make_prompt_cache(net)
        self.can_roll_back = all(_is_whole(entry) for entry in self._caches)

    def caches(self, lanes: Sequence[int], starts: Sequence[int], size: int) -> list[Any]:
        return self._caches

    def leave(self) -> list[Any]:
        return [entry.state for entry in self._caches]

    def keep(self, lane: int, length: int, held: int) -> bool:
        if length == held:
            return True
        return self.can_roll_back and caches.trim_prompt_cache(self._caches, held - length) == held - length

    def checkpoint(self, lane: int) -> list[Any]:
        return copy.deepcopy(self._caches)

    def go_back(self, lane: int, saved: list[Any]) -> None:
        self._caches = copy.deepcopy(saved)

    def forget(self, lane: int) -> None:
        self._caches = caches.make_prompt_cache(self._net)

    def copy(self, source: int, target: int) -> None:
        """There is one sequence only."""

    def state_size(self, lane: int, held: int) -> int:
        states = tree_flatten([entry.state for entry in self._caches])
        return sum(array.nbytes for _, array in states if isinstance(array, mx.array))

    def state(self, lane: int, held: int) -> list[Any]:
        return self.checkpoint(lane)

    def restore(self, lane: int, state: list[Any]) -> None:
        self.go_back(lane, state)


def memory_of(net: Any, bits: int | None) -> Memory:
    """The memory for a model; `bits` quantizes its keys and values. Raises Fault when they cannot be.

    Whether the model's code reads rows of different lengths rightly is tried on a few tokens, beside mlx-lm's caches:
    some architectures compute with positions in ways that allow one sequence only.
    """
    try:
        rows = Rows(net)
        fits = _agrees(net, rows)
    except NotSideBySideError:
        fits = False
    except Exception:
        # Whatever a model's code makes of positions that it does not expect.
        fits = False
    if bits is None:
        return Rows(net) if fits else Plain(net)
    why: Exception | str = "its layers keep their state in another way"
    if fits:
        for group_size in _GROUP_SIZES:
            try:
                _try_out(net, precision := Precision(bits, group_size))
            except Exception as error:
                why = error
            else:
                return Rows(net, precision)
    raise Fault("unsupported", f"this model's keys and values cannot be cached in {bits} bits: {why}")


def _agrees(net: Any, rows: Rows) -> bool:
    """Whether two sequences side by side give what each gives alone."""
    lengths = (3, 5) if rows.can_pad else (4, 4)
    tokens = [[1 + i % 5 for i in range(length + 2)] for length in lengths]
    size = max(lengths)
    padded = mx.array([t[:-2] + [0] * (size - length) for t, length in zip(tokens, lengths, strict=True)])
    net(padded, cache=rows.caches((0, 1), (0, 0), size))
    rows.leave()
    together = net(mx.array([t[-2:] for t in tokens]), cache=rows.caches((0, 1), lengths, 2))
    rows.leave()
    for row, sequence in zip(together, tokens, strict=True):
        alone = net(mx.array([sequence]), cache=caches.make_prompt_cache(net))[0, -2:].astype(mx.float32)
        error = mx.abs(row.astype(mx.float32) - alone).max()
        if not (error <= _NOISE * (alone.max() - alone.min())).item():
            return False
    return True


def _try_out(net: Any, precision: Precision) -> None:
    rows = Rows(net, precision)
    mx.eval(net(mx.array([[1, 2], [3, 4]]), cache=rows.caches((0, 1), (0, 0), 2)))
    rows.leave()


def _is_whole(entry: Any) -> bool:
    """Whether a cache holds all tokens however many they are: a window or chunk forgets what taking back needs."""
    if isinstance(entry, caches.CacheList):
        return all(_is_whole(inner) for inner in entry.caches)
    if isinstance(entry, (caches.RotatingKVCache, caches.ChunkedKVCache)):
        return False
    return bool(entry.is_trimmable())
