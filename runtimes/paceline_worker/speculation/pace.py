"""What drafting has been worth lately, and when to look again.

One `Pace` per class of occupancy, as a batch of eight sequences is another trade than one sequence alone.
"""

from __future__ import annotations

PROBED_LENGTHS = (4, 7, 2, 1, 3)
"""Drafts of these lengths are verified whole at the beginning, to learn the costs where the decisions lie."""

_REFRESH_PLAIN = 96
_BURST = 4
_LEAST_BACKOFF, _MOST_BACKOFF = 8, 512
_PROBE_SHARE = 0.004
"""Looking again need be no rarer than this part of the time allows."""
_RATE_MEMORY = 0.98
_VALUE_STEP = 0.06
_MOST_JUDGED = 4.0
"""What one draft can say at most, so that a wild measurement is soon forgotten."""


class Pace:
    def __init__(self, *, alone: bool) -> None:
        self.value = [0.05, 0.05, 0.05]
        """Mean worth of a draft in tokens, net of its price; by how the step before ended (`Stream.last`)."""
        self._judged = [0, 0, 0]
        self._tokens = 0.0
        self._seconds = 0.0
        self._since_plain = 0
        self._idle = 0
        self._burst = 0
        self._hits = 0
        self._backoff = _LEAST_BACKOFF
        self._lengths = list(PROBED_LENGTHS) * 2 if alone else [1, 3]

    def rate(self, plain: float, occupancy: int) -> float:
        """Committed tokens per second lately; never less than plain decoding gives. 0 while nothing is known."""
        if not plain:
            return 0.0
        least = occupancy / plain
        return max(self._tokens / self._seconds, least) if self._seconds else least

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens = self._tokens * _RATE_MEMORY + tokens
        self._seconds = self._seconds * _RATE_MEMORY + seconds

    @property
    def wants_plain(self) -> bool:
        """Whether the price of a step without a draft was last measured too long ago."""
        return self._since_plain >= _REFRESH_PLAIN

    def next_length(self, most: int) -> int:
        """A length to draft and verify whole, to learn its price; 0 when that is done. Each is given out once."""
        for i, length in enumerate(self._lengths):
            if length <= most:
                return self._lengths.pop(i)
        return 0

    def may_probe(self, price: float) -> bool:
        """Whether to look again now if drafts are worth their price; a step of looking costs `price` tokens."""
        longest = min(max(_BURST * price / _PROBE_SHARE, _LEAST_BACKOFF), _MOST_BACKOFF)
        return self._burst > 0 or self._idle >= min(self._backoff, longest)

    @property
    def probing(self) -> bool:
        """Whether a burst of probes has begun and is not over."""
        return self._burst > 0

    def hit(self) -> None:
        """The first token of a probe was right."""
        self._hits += 1

    def stepped(self, *, drafted: bool, extended: bool, probing: bool) -> None:
        """A step is over: the draft model worked, tokens of a draft were verified, it was a probe."""
        self._since_plain = self._since_plain + 1 if extended else 0
        if probing:
            self._burst = (self._burst or _BURST) - 1
            if not self._burst:
                self._idle = 0
                if 2 * self._hits < _BURST:
                    self._backoff = min(2 * self._backoff, _MOST_BACKOFF)
                self._hits = 0
        elif drafted:
            self._idle = 0
            if extended:
                self._backoff = _LEAST_BACKOFF
        else:
            self._idle += 1

    def judge(self, last: int, value: float, *, probing: bool) -> None:
        """A draft that began after a step of kind `last` was worth `value` tokens."""
        value = min(max(value, -_MOST_JUDGED), _MOST_JUDGED)
        self._judged[last] += 1
        step = max(0.25 if probing else _VALUE_STEP, 1.0 / (3 + self._judged[last]))
        for kind in range(3):
            part = step if kind == last else step / 4
            self.value[kind] += part * (value - self.value[kind])
