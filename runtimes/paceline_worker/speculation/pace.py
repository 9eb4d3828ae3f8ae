"""What drafting has been worth lately, and when to look again.

One `Pace` per class of occupancy, as a batch of eight sequences is another trade than one sequence alone. It begins
with what the others' experience foresees (`reach`).
"""

from __future__ import annotations

from paceline_worker.speculation.costs import CostCurve

PROBED_LENGTHS = (4, 7, 2, 1, 3)
"""Drafts of these lengths are verified whole at the beginning, to learn the costs where the decisions lie."""
_TOGETHER = (3, 1)
_MOST_ROWS = 16
"""The same where several sequences are the first, up to so many rows: a wrong draft of many is dear."""

_REFRESH_PLAIN = 96
_BURST = 4
"""Drafts that one look takes; several sequences make them in one step."""
_LEAST_BACKOFF, _MOST_BACKOFF = 8, 512
_PROBE_SHARE = 0.004
"""Looking again need be no rarer than this part of the time allows."""
_RATE_MEMORY = 0.98
_CAUTION = 1.15
"""By what factor a drafted token of several sequences must bring more than plain decoding. Who drafts well ends early
and leaves a batch that is worse filled, and the best of several uncertain lengths is less good than it looks."""
_VALUE_STEP = 0.06
_FORESEEN = 10.0
"""Plain steps that a foreseen rate counts for."""
_MOST_JUDGED = 4.0
"""What one draft can say at most, so that a wild measurement is soon forgotten."""


class Pace:
    def __init__(self, occupancy: int, foreseen: tuple[float, float] | None, plain: float) -> None:
        """`foreseen`: the rate and the worth of a draft (`Reach.foresee`); `plain`: seconds of a step without one."""
        self.value = [0.05 if foreseen is None else min(max(foreseen[1], -_MOST_JUDGED), _MOST_JUDGED)] * 3
        """Mean worth of a draft in tokens, net of its price; by how the step before ended (`Stream.last`)."""
        self._judged = [0 if foreseen is None else _BURST] * 3
        self._seconds = 0.0 if foreseen is None else _FORESEEN * plain
        self._tokens = 0.0 if foreseen is None else foreseen[0] * self._seconds
        self._since_plain = 0
        self._idle = 0
        self._burst = self._drafts = self._hits = 0
        self._backoff = _LEAST_BACKOFF
        self._longest = 0.0
        """Steps after which it looks again at the latest, whatever came of the looks before."""
        together = [] if foreseen else [n for n in _TOGETHER if occupancy * (1 + n) <= _MOST_ROWS]
        self._lengths = list(PROBED_LENGTHS) * 2 if occupancy == 1 else together

    def rate(self, plain: float, occupancy: int) -> float:
        """Committed tokens per second lately; never less than plain decoding gives, and with several sequences than
        `_CAUTION` times that. 0 while nothing is known."""
        if not plain:
            return 0.0
        least = occupancy / plain * (1.0 if occupancy == 1 else _CAUTION)
        return max(self._tokens / self._seconds, least) if self._seconds else least

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens = self._tokens * _RATE_MEMORY + tokens
        self._seconds = self._seconds * _RATE_MEMORY + seconds

    @property
    def wants_plain(self) -> bool:
        """Whether the price of a step without a draft was last measured too long ago."""
        return self._since_plain >= _REFRESH_PLAIN

    def next_length(self, most: int, curve: CostCurve, occupancy: int) -> int:
        """A length to draft and verify whole, to learn its price; 0 when that is done. Each is given out once.

        `curve`: what is known of prices; what was seen more than once needs no learning.
        """
        self._lengths = [n for n in self._lengths if occupancy > 1 or curve.count(1 + n) < 2]
        for i, length in enumerate(self._lengths):
            if length <= most:
                return self._lengths.pop(i)
        return 0

    def take_back(self, length: int) -> None:
        """A length was not drafted after all."""
        self._lengths.insert(0, length)

    def may_probe(self, price: float) -> bool:
        """Whether to look again now if drafts are worth their price; a step of looking costs `price` plain steps."""
        self._longest = min(max(_BURST * price / _PROBE_SHARE, _LEAST_BACKOFF), _MOST_BACKOFF)
        return self._is_due

    @property
    def _is_due(self) -> bool:
        return self._burst > 0 or self._idle >= min(self._backoff, self._longest)

    @property
    def resting(self) -> bool:
        """Whether sequences that verified nothing in the step before will draft nothing in this one either, whoever
        they are: there is nothing to learn, drafts are worth less than their price, and it is early to look again."""
        return not (self._is_due or self._lengths or self.value[0] > 0.0)

    def put_off(self) -> None:
        """It is time to look again, but there is nobody to look, or it cannot be paid."""
        self._idle = max(self._idle - _LEAST_BACKOFF, 0)

    @property
    def probing(self) -> bool:
        """Whether a burst of probes has begun and is not over."""
        return self._burst > 0

    def hit(self) -> None:
        """The first token of a probe was right."""
        self._hits += 1

    def stepped(self, drafts: int, *, extended: bool, probing: bool) -> None:
        """A step is over: the draft model made so many drafts, tokens of them were verified, it was a probe."""
        self._since_plain = self._since_plain + 1 if extended else 0
        if probing:
            self._drafts += drafts
            self._burst = max((self._burst or _BURST) - max(drafts, 1), 0)
            if not self._burst:
                self._idle = 0
                if 2 * self._hits < self._drafts:
                    self._backoff = min(2 * self._backoff, _MOST_BACKOFF)
                self._hits = self._drafts = 0
        elif drafts:
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
