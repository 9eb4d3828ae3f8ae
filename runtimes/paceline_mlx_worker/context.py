"""A batch of tokens through a model: in which forward passes it is computed, and the logits it gives."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from paceline_mlx_worker.ahead import Ahead, Places
from paceline_mlx_worker.binding import Model
from paceline_mlx_worker.memory import Memory

Logits = np.ndarray[Any, np.dtype[np.float32]]

CHUNK = 512
"""Most tokens of a sequence, or of all together, computed in one pass."""

_FEW = 32
"""Up to so many tokens it costs less to compute their unused logits than a pass for the last token alone."""
_FEW_BESIDE_OTHERS = 4
"""The same where the last token is computed in a pass with other sequences' tokens."""

_PASS_WORTH = {mx.gpu: 32, mx.cpu: 2}
"""Padding tokens that are computed rather than starting another pass."""


@dataclass(frozen=True)
class _Entry:
    lane: int
    start: int
    tokens: Sequence[int]
    outputs: int

    def part(self, first: int, last: int, *, outputs: int = 0) -> _Entry:
        """Its tokens from `first` up to `last`."""
        return _Entry(self.lane, self.start + first, self.tokens[first:last], outputs)


class Batch:
    """Tokens of several lanes that are computed together."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.outputs = 0

    @property
    def size(self) -> int:
        return sum(len(entry.tokens) for entry in self.entries)

    @property
    def left(self) -> int:
        """Tokens that still fit: any number does."""
        return sys.maxsize

    def clear(self) -> None:
        self.entries = []
        self.outputs = 0

    def add(self, lane: int, tokens: Sequence[int], start: int, *, outputs: int) -> int:
        """Append `tokens` of `lane` from position `start` on; returns the index of the first of the last `outputs`."""
        self.entries.append(_Entry(lane, start, tokens, outputs))
        self.outputs += outputs
        return self.outputs - outputs


class Context:
    """The sequences computed with a model, and the logits of the last batch."""

    def __init__(self, model: Model, memory: Memory) -> None:
        self.batch = Batch()
        self._model = model
        self._memory = memory
        self._held: dict[int, int] = {}
        device = mx.default_device().type
        self._on_cpu = device == mx.cpu
        self._worth = _PASS_WORTH[device]
        self._logits: Any = None
        self._likeliest: list[int] | None = None
        self._probabilities: list[float] | None = None
        self._rows: Logits | None = None
        self._ahead = Ahead(lambda places, tokens: self._pass(places, tokens)[0])
        self._next: Places = []
        """Where the next tokens go if the last batch was a token of each lane, and can be taken back."""

    @property
    def can_roll_back(self) -> bool:
        """Whether tokens can be taken back."""
        return self._memory.can_roll_back

    @property
    def wants_even(self) -> bool:
        """It fills up by itself where that is cheaper (`_groups`)."""
        return False

    def decode(self) -> None:
        """Compute the batch; its outputs' logits can be read until the next one."""
        entries = self.batch.entries
        single = all(len(entry.tokens) == entry.outputs == 1 for entry in entries)
        places = [(entry.lane, entry.start) for entry in entries] if single else []
        begun = self._ahead.take(places, [entry.tokens[0] for entry in entries])
        for entry in entries:
            self._held[entry.lane] = entry.start + len(entry.tokens)
        self._logits = self._compute() if begun is None else begun[:, 0]
        self._likeliest = self._probabilities = self._rows = None
        self._next = [(lane, start + 1) for lane, start in places] if self._memory.can_pad else []

    def likeliest(self, index: int) -> int:
        """The token with the highest of the logits at one of the outputs, the first of equals."""
        if self._likeliest is None:
            if self._next:
                self._likeliest = self._ahead.likeliest(self._next, self._logits)
            else:
                found: list[int] = mx.argmax(self._logits, axis=-1).tolist()
                self._likeliest = found
        return self._likeliest[index]

    def likeliest_with_probability(self, index: int) -> tuple[int, float]:
        """The likeliest token at one of the outputs and its softmax probability."""
        if self._likeliest is None or self._probabilities is None:
            if self._on_cpu:  # where numpy is several times faster
                logits = self._all_logits()
                sums = np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
                self._likeliest, self._probabilities = logits.argmax(axis=-1).tolist(), (1 / sums).tolist()
            else:
                logits = self._logits.astype(mx.float32)
                tokens = mx.argmax(self._logits, axis=-1)
                probabilities = mx.exp(mx.max(logits, axis=-1) - mx.logsumexp(logits, axis=-1))
                mx.eval(tokens, probabilities)
                self._likeliest, self._probabilities = tokens.tolist(), probabilities.tolist()
        assert self._likeliest is not None
        assert self._probabilities is not None
        return self._likeliest[index], self._probabilities[index]

    def logits(self, index: int) -> Logits:
        """Logits at one of the outputs, shape (n_vocab,); not to be written to."""
        row: Logits = self._all_logits()[index]
        return row

    def keep(self, lane: int, length: int) -> bool:
        """Forget a lane from position `length` on; False when its memory cannot forget a part."""
        self._ahead.forget()
        if length and self._memory.keep(lane, length, self._held.get(lane, 0)):
            self._held[lane] = length
            return True
        return False

    def shift(self, lane: int, start: int, count: int) -> bool:
        """Keys are kept as their positions turned them, so nothing is moved to other positions."""
        return False

    def checkpoint(self, lane: int) -> Any:
        """What of a lane's state cannot be rolled back, as it is now."""
        return self._memory.checkpoint(lane)

    def go_back(self, lane: int, length: int, saved: Any) -> None:
        """Return to a checkpoint of `length` tokens; what can be rolled back is still to be, by `keep`."""
        self._ahead.forget()
        self._memory.go_back(lane, saved)
        self._held[lane] = length

    def forget(self, lane: int) -> None:
        self._ahead.forget()
        self._memory.forget(lane)
        self._held[lane] = 0

    def copy(self, source: int, target: int) -> None:
        """Give `target`, which is empty, all that `source` holds."""
        self._ahead.forget()
        self._memory.copy(source, target)
        self._held[target] = self._held.get(source, 0)

    @property
    def is_changing(self) -> bool:
        """Copies are made at once."""
        return False

    @property
    def state_is_near(self) -> bool:
        """Where MLX runs, GPUs compute in the machine's memory."""
        return True

    def state_size(self, lane: int) -> int:
        """Bytes of a lane's whole state."""
        return self._memory.state_size(lane, self._held.get(lane, 0))

    def state(self, lane: int) -> Any:
        """A copy of a lane's whole state, and how many tokens it holds."""
        held = self._held.get(lane, 0)
        return self._memory.state(lane, held), held

    def restore(self, lane: int, state: Any) -> bool:
        """Give a lane such a state."""
        self._ahead.forget()
        saved, self._held[lane] = state
        self._memory.restore(lane, saved)
        return True

    def close(self) -> None:
        self._ahead.forget()
        del self._memory
        self._logits = self._likeliest = self._rows = None
        gc.collect()
        mx.clear_cache()

    def _all_logits(self) -> Logits:
        """Of all outputs, shape (outputs, n_vocab)."""
        if self._rows is None:
            self._rows = np.asarray(self._logits.astype(mx.float32))
        return self._rows

    def _compute(self) -> Any:
        """Logits of the batch's outputs, shape (outputs, n_vocab); None if it has none."""
        few = _FEW_BESIDE_OTHERS if sum(entry.outputs > 0 for entry in self.batch.entries) > 1 else _FEW
        silent, rest = [], []
        for entry in self.batch.entries:
            count = len(entry.tokens) - entry.outputs
            if entry.outputs and count <= few:
                rest.append(entry)
                continue
            silent.append(entry.part(0, count))
            if entry.outputs:
                rest.append(entry.part(count, len(entry.tokens), outputs=entry.outputs))
        self._read(silent)
        found: dict[int, Any] = {}
        for group in self._groups(rest):
            logits, _ = self._run(group)
            for row, entry in zip(logits, group, strict=True):
                found[entry.lane] = row[len(entry.tokens) - entry.outputs : len(entry.tokens)]
        parts = [found[entry.lane] for entry in rest]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts) if parts else None

    def _read(self, entries: Sequence[_Entry]) -> None:
        """Compute tokens whose logits nobody wants."""
        while entries:
            for group in self._groups([entry.part(0, CHUNK) for entry in entries]):
                mx.eval(self._run(group)[1])
            mx.clear_cache()
            entries = [entry.part(CHUNK, len(entry.tokens)) for entry in entries if len(entry.tokens) > CHUNK]

    def _groups(self, entries: Sequence[_Entry]) -> list[list[_Entry]]:
        """What to compute together: entries of one length, or padded to one where that costs less than a pass."""
        groups: list[list[_Entry]] = []
        padding = 0
        for entry in sorted(entries, key=lambda e: -len(e.tokens)):
            if groups and self._memory.count is None:
                size = len(groups[-1][0].tokens)
                more = size - len(entry.tokens)
                worth = more + padding <= self._worth if self._memory.can_pad else more == 0
                if worth and (1 + len(groups[-1])) * size <= CHUNK:
                    groups[-1].append(entry)
                    padding += more
                    continue
            groups.append([entry])
            padding = 0
        return [sorted(group, key=lambda e: e.lane) for group in groups]

    def _run(self, group: Sequence[_Entry]) -> tuple[Any, list[Any]]:
        """Logits of all tokens of a pass, shape (entries, tokens, n_vocab), and what it leaves in memory."""
        size = max(len(entry.tokens) for entry in group)
        tokens = [[*entry.tokens, *[entry.tokens[-1]] * (size - len(entry.tokens))] for entry in group]
        return self._pass([(entry.lane, entry.start) for entry in group], mx.array(tokens))

    def _pass(self, places: Places, tokens: Any) -> tuple[Any, list[Any]]:
        """The same for tokens, shape (places, tokens), that follow each other from `places` on."""
        lanes, starts = zip(*places, strict=True)
        logits = self._model.net(tokens, cache=self._memory.caches(lanes, starts, tokens.shape[1]))
        return logits, self._memory.leave()
