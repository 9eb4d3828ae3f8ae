"""One sequence: what is known of it over its life (`Stream`), and its part of one step (`Seat`)."""

from __future__ import annotations

from collections.abc import Sequence

from paceline_worker.request import DraftKnobs
from paceline_worker.speculation.calibration import Calibration, Shift, confidence_class
from paceline_worker.speculation.lookup import Lookup
from paceline_worker.speculation.price import Price


class Stream:
    """What the controller knows of one sequence. Nothing needs closing."""

    __slots__ = ("has_model", "knobs", "last", "lookup", "lookup_shift", "shift")

    def __init__(self, knobs: DraftKnobs, prompt: Sequence[int], *, model: bool, lookup: bool) -> None:
        self.knobs = knobs
        self.has_model = model
        self.lookup = Lookup(prompt) if lookup else None
        self.shift = Shift()
        self.lookup_shift = Shift()
        self.last = 0
        """How the step before ended: 0 nothing was verified, 1 a token was refused, 2 all were accepted."""

    @property
    def drafts(self) -> bool:
        """Whether anything can propose for this sequence."""
        return self.has_model or self.lookup is not None

    def extend(self, token: int) -> None:
        """The sequence got a token."""
        if self.lookup is not None:
            self.lookup.extend((token,))

    def leave(self, *, lookup: bool) -> None:
        """The draft model can take no part any more, nor can prompt lookup if `lookup`."""
        self.has_model = False
        if lookup:
            self.lookup = None


class Seat:
    """One stream's part of a round: what its drafters propose, with what chance, and what is chosen of it."""

    def __init__(self, stream: Stream, room: int, lag: int) -> None:
        knobs = stream.knobs
        self.stream = stream
        self.room = max(room, 0)
        self.lag = lag
        self.exact = knobs.exact_tokens is not None
        self.sure = self.exact
        """Drafts to the limit whatever it is worth."""
        wanted = knobs.max_tokens if knobs.exact_tokens is None else knobs.exact_tokens
        self.limit = max(0, min(wanted, room))
        if not self.exact and self.limit < knobs.min_tokens:
            self.limit = 0
        self.drafting = False
        self.steps = 0
        self.tokens: list[int] = []
        """What the draft model made."""
        self.survivals: list[float] = []
        """The probability of each of them that it and all before it are accepted."""
        self.expected = 0.0
        """That of the token after them."""
        self._factor = stream.shift.factor
        self._survival = 1.0
        self._classes: list[int] = []
        self._probabilities: list[float] = []
        self.lookup_survivals: list[float] = []
        """The same of what prompt lookup proposes, as far as the request's bounds allow it."""
        self._lookup_tokens: list[int] = []
        self._lookup_class = 0
        self._lookup_probability = 0.0
        self.looked_up = False
        """Whether prompt lookup's proposal was chosen."""
        self.keep = 0
        """How many tokens of what was chosen are verified."""

    @property
    def able(self) -> bool:
        """Whether the draft model may draft for it."""
        return self.stream.has_model and self.limit > 0

    @property
    def chosen(self) -> list[int]:
        return self._lookup_tokens if self.looked_up else self.tokens

    @property
    def chosen_survivals(self) -> list[float]:
        return self.lookup_survivals if self.looked_up else self.survivals

    def look_up(self, calibration: Calibration) -> None:
        """What the sequence's own tokens propose, and the chance of each of them. It costs nothing."""
        lookup = self.stream.lookup
        if lookup is None or self.limit < 1:
            return
        self._lookup_tokens, confidence = lookup.propose(self.limit)
        if not self._lookup_tokens:
            return
        self._lookup_class = cls = confidence_class(confidence)
        odds = calibration.odds[cls] * self.stream.lookup_shift.factor
        survival = chance = self._lookup_probability = odds / (1.0 + odds)
        follows = calibration.next[cls]
        for _ in self._lookup_tokens:
            if chance < self.stream.knobs.min_probability and not self.exact:
                break
            self.lookup_survivals.append(survival)
            survival *= follows
            chance = follows

    def take(self, token: int, confidence: float, calibration: Calibration) -> bool:
        """Note the draft model's next token; False, and the draft is over, if it is less likely than asked for."""
        if not confidence >= self.stream.knobs.min_probability and not self.exact:
            self.drafting = False
            return False
        cls = confidence_class(confidence)
        odds = calibration.odds[cls] * self._factor
        probability = odds / (1.0 + odds)
        self._survival = survival = self._survival * probability
        self.tokens.append(token)
        self._classes.append(cls)
        self._probabilities.append(probability)
        self.survivals.append(survival)
        follows = calibration.next[cls]
        self.expected = survival * follows * self._factor / (1.0 + follows * (self._factor - 1.0))
        if len(self.tokens) >= self.limit:
            self.drafting = False
        return True

    def choose(self, price: Price) -> None:
        """Pick the better drafter."""
        if self.sure:
            self.looked_up = not self.tokens
        else:
            self.looked_up = price.worth(self.lookup_survivals) > price.worth(self.survivals)

    def learn(self, emitted: Sequence[int], calibration: Calibration, lookup_calibration: Calibration) -> None:
        """Compare all that was proposed, verified or not, with what the main model chose."""
        self._learn_draft(emitted, calibration)
        self._learn_lookup(emitted, lookup_calibration)
        self.stream.last = 0 if not self.keep else 2 if len(emitted) > self.keep else 1

    def _learn_draft(self, emitted: Sequence[int], calibration: Calibration) -> None:
        previous = -1
        for i, token in enumerate(self.tokens):
            if i == len(emitted):
                calibration.observe_next(previous, self._probabilities[i])
                break
            agreed, cls = token == emitted[i], self._classes[i]
            calibration.observe(cls, agreed)
            self.stream.shift.observe(self._probabilities[i], agreed)
            if previous >= 0:
                calibration.observe_next(previous, 1.0 if agreed else 0.0)
            previous = cls
            if not agreed:
                break

    def _learn_lookup(self, emitted: Sequence[int], calibration: Calibration) -> None:
        for i, (token, actual) in enumerate(zip(self._lookup_tokens, emitted, strict=False)):
            agreed = token == actual
            if i:
                calibration.observe_next(self._lookup_class, 1.0 if agreed else 0.0)
            else:
                calibration.observe(self._lookup_class, agreed)
                self.stream.lookup_shift.observe(self._lookup_probability, agreed)
            if not agreed:
                return
