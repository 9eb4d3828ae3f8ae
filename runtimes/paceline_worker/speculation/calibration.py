"""The probability that a drafted token will be accepted, learned from what became of earlier ones.

A draft's confidence in its token (its own softmax probability) says which tokens will be accepted, but not how often:
that depends on both models and on the request's temperature. A histogram-binning calibration (Zadrozny and Elkan 2001)
maps one to the other, with the confidence itself, a little discounted, as the prior. What one sequence does differently
from the others is a single shift of the log odds, followed quickly and forgotten slowly.
"""

from __future__ import annotations

import math
from bisect import bisect
from itertools import pairwise

EDGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.997, 0.999)
"""Bounds of the confidence classes, finer where a draft is sure."""
CLASSES = len(EDGES) + 1

_PRIOR_WEIGHT = 6.0
_MEMORY = 0.997
"""What is kept of a class's counts per observation: the last 300 or so count."""
_SHIFT_STEP = 0.15
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
        self._prior = [trust * (a + b) / 2 for a, b in pairwise(bounds)]
        self._accepted = [0.0] * CLASSES
        self._seen = [0.0] * CLASSES
        self.odds = [p / (1 - p) for p in self._prior]
        """Per class: the odds of acceptance."""
        self.next = [trust * 0.8] * CLASSES
        """Per class: the mean probability of the token after an accepted one of this class."""
        self.run = 0.7
        """The same over all classes: how fast the chance of a whole draft falls."""

    def probability(self, confidence: float) -> float:
        odds = self.odds[confidence_class(confidence)]
        return odds / (1 + odds)

    def observe(self, cls: int, accepted: bool) -> None:
        """A token of this class was compared with the main model's choice."""
        seen = self._seen[cls] = self._seen[cls] * _MEMORY + 1.0
        right = self._accepted[cls] = self._accepted[cls] * _MEMORY + (1.0 if accepted else 0.0)
        p = (right + self._prior[cls] * _PRIOR_WEIGHT) / (seen + _PRIOR_WEIGHT)
        self.odds[cls] = p / (1 - p)

    def observe_next(self, cls: int, probability: float) -> None:
        """After an accepted token of this class came one that was, or would be, accepted with `probability`."""
        self.next[cls] += 0.03 * (probability - self.next[cls])
        self.run += 0.01 * (probability - self.run)


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
