"""The probability that a drafted token will be accepted, learned from what became of earlier ones.

A draft's confidence in its token (its own softmax probability) says which tokens will be accepted, but not how often:
that depends on both models and on the request's temperature. A histogram-binning calibration (Zadrozny and Elkan 2001)
maps one to the other. A class that was seen rarely is taken for what a line over all classes says (Platt 1999, over the
log odds; of line and classes together, Kumar et al. 2019, "Verified Uncertainty Calibration"), which begins as the
confidence itself, a little discounted. What one sequence does differently from the others is a single shift of the log
odds, followed quickly and forgotten slowly.
"""

from __future__ import annotations

import math
from bisect import bisect
from itertools import pairwise

EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.997, 0.999)
"""Bounds of the confidence classes, finer where a draft is sure."""
CLASSES = len(EDGES) + 1

_PRIOR_WEIGHT = 12.0
"""Observations that the line over all classes counts for in each of them."""
_LINE_WEIGHT = 1.0
"""Information that holds the line where it is: that of four tokens as likely accepted as not."""
_MOST_LOG = 8.0
_MEMORY = 0.998
"""What is kept of the counts per observation: the last 500 or so count."""
_NEXT_WEIGHT = 8.0
"""Accepted tokens that the mean over all classes counts for in each."""
_NEXT_MEMORY = 0.997
_READ_EVERY = 8
"""Observations after which the odds of all classes follow the line."""
_SHIFT_STEP = 0.1
_SHIFT_MEMORY = 0.98
_MOST_SHIFT = 2.5


def confidence_class(confidence: float) -> int:
    """The class of a confidence; what is no probability counts as none."""
    return bisect(EDGES, confidence) if confidence == confidence else 0


class Calibration:
    """Observed acceptance per class of confidence, for tokens whose predecessors were all accepted."""

    def __init__(self, *, trust: float = 0.9) -> None:
        """`trust`: what part of the confidence is believed before anything was observed."""
        bounds = (0.0, *EDGES, 1.0)
        self._line = _Line([_logit(trust * (a + b) / 2) for a, b in pairwise(bounds)])
        self._accepted = [0.0] * CLASSES
        self._seen = [0.0] * CLASSES
        self._unread = 0
        self.odds = [0.0] * CLASSES
        """Per class: the odds of acceptance."""
        self._followed = [0.0] * CLASSES
        self._follows = [0.0] * CLASSES
        self.next = [trust * 0.8] * CLASSES
        """Per class: the mean probability of the token after an accepted one of this class."""
        self.run = 0.7
        """The same over all classes: how fast the chance of a whole draft falls."""
        self._runs = 0
        self._read()

    def observe(self, cls: int, accepted: bool) -> None:
        """A token of this class was compared with the main model's choice."""
        self._line.observe(cls, accepted)
        self._seen[cls] = self._seen[cls] * _MEMORY + 1.0
        self._accepted[cls] = self._accepted[cls] * _MEMORY + (1.0 if accepted else 0.0)
        self._unread += 1
        if self._unread >= _READ_EVERY:
            self._read()

    def observe_next(self, cls: int, probability: float) -> None:
        """After an accepted token of this class came one that was, or would be, accepted with `probability`."""
        self._runs += 1
        self.run += max(0.01, 1.0 / (_PRIOR_WEIGHT + self._runs)) * (probability - self.run)
        seen = self._follows[cls] = self._follows[cls] * _NEXT_MEMORY + 1.0
        followed = self._followed[cls] = self._followed[cls] * _NEXT_MEMORY + probability
        self.next[cls] = (followed + _NEXT_WEIGHT * self.run) / (seen + _NEXT_WEIGHT)

    def _read(self) -> None:
        self._unread = 0
        for cls in range(CLASSES):
            p = (self._accepted[cls] + _PRIOR_WEIGHT * self._line.probability(cls)) / (self._seen[cls] + _PRIOR_WEIGHT)
            self.odds[cls] = p / (1.0 - p)


class Shift:
    """How one sequence's acceptance differs from the calibration: a factor on the odds."""

    __slots__ = ("_log", "factor")

    def __init__(self) -> None:
        self._log = 0.0
        self.factor = 1.0

    def observe(self, probability: float, accepted: bool) -> None:
        """A token that was expected with `probability` was accepted or not: one step of logistic regression."""
        log = _SHIFT_MEMORY * self._log + _SHIFT_STEP * ((1.0 if accepted else 0.0) - probability)
        self._log = min(max(log, -_MOST_SHIFT), _MOST_SHIFT)
        self.factor = math.exp(self._log)


class _Line:
    """The log odds of acceptance as a line over the prior's, fitted by logistic regression.

    One Newton step per observation, with the information matrix of the last observations and a constant beside it.
    """

    def __init__(self, x: list[float]) -> None:
        """`x`: the prior's log odds, by class."""
        self._x = x
        self._offset, self._slope = 0.0, 1.0
        self._ones = self._xs = self._squares = 0.0
        """The information about the offset, about both, and about the slope."""

    def probability(self, cls: int) -> float:
        log = self._offset + self._slope * self._x[cls]
        return 1.0 / (1.0 + math.exp(-min(max(log, -_MOST_LOG), _MOST_LOG)))

    def observe(self, cls: int, accepted: bool) -> None:
        x, p = self._x[cls], self.probability(cls)
        weight, surprise = p * (1.0 - p), (1.0 if accepted else 0.0) - p
        self._ones = self._ones * _MEMORY + weight
        self._xs = self._xs * _MEMORY + weight * x
        self._squares = self._squares * _MEMORY + weight * x * x
        a, b, c = self._ones + _LINE_WEIGHT, self._xs, self._squares + _LINE_WEIGHT
        determinant = a * c - b * b
        self._offset += (c - b * x) / determinant * surprise
        self._slope += (a * x - b) / determinant * surprise


def _logit(p: float) -> float:
    return math.log(p / (1.0 - p))
