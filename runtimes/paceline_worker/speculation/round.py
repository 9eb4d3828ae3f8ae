"""One decode step of all sequences of a batch: who drafts on, what is verified, and what is learned from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paceline_worker.speculation.account import Account
from paceline_worker.speculation.calibration import Calibration
from paceline_worker.speculation.costs import Costs
from paceline_worker.speculation.pace import Pace
from paceline_worker.speculation.plain import MOST_SURPRISE
from paceline_worker.speculation.price import Price
from paceline_worker.speculation.reach import Reach
from paceline_worker.speculation.seat import Seat, Stream

_PLAIN_STEPS = 3
"""Plain steps that are timed before the first draft."""
_SCOUTS = 2
"""Of several sequences so many look for all whether drafts are worth their price: reading what each draft has missed is
most of what a look costs."""
READ_AT_ONCE = 128
"""Tokens of a sequence that the draft model reads in a step while it catches up: running generations wait no longer
than these take."""
_MOST_AT_ONCE = 4
"""Sequences for which it reads so much in one pass."""
_HORIZON = 24
"""Drafts that are counted on when the draft model has to read much before its first."""
_SMALL = 1.0
"""Tokens for whose worth of reading nothing is asked."""


@dataclass(frozen=True)
class Experience:
    """What was learned with these models on this machine, from all sequences."""

    costs: Costs
    calibration: Calibration
    lookup_calibration: Calibration
    reach: Reach
    account: Account


class Round:
    """One step: ask `wanting` and `offer` until nobody wants more, verify `proposals`, then `settle`.

    With one sequence `offer`'s answer is enough: `on = round.wants()`, `while on: on = round.offer(token, confidence)`.
    """

    def __init__(
        self, known: Experience, pace: Pace, seats: Sequence[tuple[Stream, int, int]], plain_passes: Sequence[int]
    ) -> None:
        """`pace`: of so many sequences in a batch; the others as in `Controller.plan`."""
        self._known = known
        self._pace = pace
        self._occupancy = occupancy = len(seats)
        self._width = width = max(plain_passes, default=0)
        """Rows of the largest pass for each token of all sequences."""
        self._seats = [Seat(stream, room, lag) for stream, room, lag in seats]
        most = max((seat.limit for seat in self._seats), default=0)
        # A try of several sequences is too dear for curiosity.
        table = known.costs.verify.table(width * (1 + most), curious=occupancy == 1)
        rate = pace.rate(sum(table[rows] for rows in plain_passes), occupancy)
        step = known.costs.draft_step(occupancy)
        self._price = Price(table, plain_passes, occupancy, rate, step, known.calibration.run)
        self._best = 0.0
        """The largest surplus of a beginning of the drafts."""
        self._surplus = 0.0
        """That of what was chosen to be verified."""
        self._plain_passes = plain_passes
        self._passes = tuple(plain_passes)
        self._probing = False
        self._length = 0
        """What is drafted to learn its price."""
        self._behind = 0
        """Sequences for which the draft model read on without coming to a draft."""
        self._proposals: list[list[int]] | None = None
        self._begin()

    # --- drafting ------------------------------------------------------------------------------------------------

    def wanting(self) -> list[int]:
        """The seats that want their next token in one draft step now; empty when drafting is over."""
        active = [i for i, seat in enumerate(self._seats) if seat.drafting]
        if self._occupancy > 1 and any(self._seats[i].tokens and not self._seats[i].sure for i in active):
            on = self._goes_on()
            for seat in self._seats:
                seat.drafting = seat.drafting and (seat.sure or on)
            active = [i for i in active if self._seats[i].drafting]
        return active

    def wants(self, seat: int = 0) -> bool:
        """Whether a seat still wants its next token."""
        return self._seats[seat].drafting

    def offer(self, token: int, confidence: float, seat: int = 0) -> bool:
        """The draft's next token for a seat, with the probability it gives it; whether to draft on for this seat.

        A token below the request's `min_probability` is not taken and ends the draft.
        """
        place = self._seats[seat]
        place.steps += 1
        if not place.drafting or not place.take(token, confidence, self._known.calibration):
            return False
        if self._occupancy == 1 and not place.sure:
            on = self._goes_on()
            place.drafting = place.drafting and on
        return place.drafting

    def stop(self, seat: int = 0, *, behind: bool = False) -> None:
        """The draft model cannot go on for a seat: it ended the text, left the shared vocabulary, or is still `behind`,
        with only a part read of what it has missed."""
        self._seats[seat].drafting = False
        self._behind += behind

    def proposals(self) -> list[list[int]]:
        """The tokens to verify, for each seat; from then on nothing is taken any more."""
        if self._proposals is None:
            for seat in self._seats:
                seat.drafting = False
            self._choose()
            self._proposals = [seat.chosen[: seat.keep] for seat in self._seats]
        return self._proposals

    @property
    def rows(self) -> int:
        """To how many rows each sequence is to be filled up, its last token among them, so that all are computed in one
        pass; 0 when they are not to be."""
        longest = 1 + max((seat.keep for seat in self._seats), default=0)
        even = tuple(rows * longest for rows in self._plain_passes)
        return longest if self._occupancy > 1 and self._passes == even else 0

    def looked_up(self, seat: int = 0) -> bool:
        """Whether a seat's proposal is prompt lookup's, not the draft model's."""
        return self._seats[seat].looked_up

    def settle(
        self,
        emitted: Sequence[Sequence[int]],
        draft_seconds: float,
        verify_seconds: float,
        passes: Sequence[int] | None = None,
    ) -> None:
        """Learn from the step: what each seat committed (accepted tokens and the main model's own), and the times.

        Seconds that were not measured, or of a batch that also carried prompt chunks, are given as 0. `passes`: the
        rows of each pass that was made, where that is known better than here.
        """
        extended = any(self.proposals())
        own = self._price.seconds(self._passes)
        if passes is not None:
            self._passes = tuple(passes)
        costs = self._known.costs
        usual = sum(map(costs.verify.at, self._passes))
        costs.observe_verify(verify_seconds, self._passes)
        worked = [seat for seat in self._seats if seat.steps]
        steps = max((seat.steps for seat in worked), default=0)
        lags = [seat.lag for seat in worked]
        lag = sum(lags) if max(lags, default=0) > 2 else 1
        costs.observe_draft(draft_seconds, steps, len(worked), lag)
        if self._behind and not worked:
            costs.observe_read(draft_seconds, READ_AT_ONCE * min(self._behind, _MOST_AT_ONCE))
        if not all(seat.exact for seat in self._seats):  # what a request asked for says nothing about what pays
            self._judge(len(worked), extended=extended)
        unread = READ_AT_ONCE * self._behind + (lag if lag > 2 else 0)
        usual += steps * costs.draft_step(self._occupancy) + costs.draft_read(unread)
        tokens = sum(map(len, emitted))
        drafting = draft_seconds if 0.0 < draft_seconds < math.inf else 0.0
        reading = max(drafting - steps * costs.draft_step(self._occupancy), 0.0) if unread else 0.0
        if 0.0 < verify_seconds < math.inf:
            self._account(tokens, steps, usual, drafting, verify_seconds, reading, extended=extended)
        elif steps or extended:  # beside prompts: not measured, and paid for by what it is known to take
            self._pay(tokens, own + drafting, reading)
        for seat, committed in zip(self._seats, emitted, strict=True):
            if self._probing and seat.tokens[:1] == list(committed[:1]):
                self._pace.hit()
            seat.learn(committed, self._known.calibration, self._known.lookup_calibration)

    # --- beginning -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Decide which seats draft at all, and look up what costs nothing."""
        known, pace, occupancy = self._known, self._pace, self._occupancy
        for seat in self._seats:
            seat.look_up(known.lookup_calibration)
            seat.drafting = seat.exact and seat.able
        curve = known.costs.verify
        ready = not pace.wants_plain and all(
            curve.count(rows) >= _PLAIN_STEPS or curve.spans(rows) for rows in self._plain_passes
        )
        if not ready or known.account.empty:
            for seat in self._seats:
                if not seat.exact:
                    seat.lookup_survivals = []
            return
        able = self._affordable([seat for seat in self._seats if seat.able and not seat.exact])
        if not able:
            return
        self._length = length = pace.next_length(min(seat.limit for seat in able), curve, occupancy)
        if length:
            for seat in able:
                seat.sure = seat.drafting = True
                seat.limit = min(seat.limit, length)
            return
        if sum(pace.value[seat.stream.last] for seat in able) > 0.0:
            for seat in able:
                if occupancy > 1:  # what was never measured is tried a level at a time: a wrong guess costs all of them
                    seat.limit = min(seat.limit, max(curve.largest // self._width, 1))
                seat.drafting = self._worth_starting(seat)
        if pace.may_probe(self._price.step / occupancy) and not any(seat.drafting for seat in able):
            able = [seat for seat in able if self._worth_a_look(seat)]
            if occupancy > 1:
                able = self._scouts(able)
            price = self._price.step + sum(map(self._reading, able))
            if able and (pace.probing or known.account.can_pay(price)):  # a burst that has begun goes on
                self._probing = True
                for seat in able:
                    seat.limit = seat.limit if occupancy == 1 else min(seat.limit, max(curve.largest // self._width, 1))
                    seat.drafting = True
            else:
                pace.put_off()

    def _scouts(self, seats: Sequence[Seat]) -> list[Seat]:
        """Who looks for all: some who have little to read, or one."""
        nearest = sorted(seats, key=lambda seat: seat.lag)[:_SCOUTS]
        return [seat for seat in nearest if self._reading(seat) < _SMALL] or nearest[:1]

    def _affordable(self, seats: Sequence[Seat]) -> list[Seat]:
        """Those for which the draft model may read what it has missed: what takes one step and next to no time, and of
        what takes more as much as can be paid to its end; for one, until the price is known."""
        costs, account = self._known.costs, self._known.account
        found: list[Seat] = []
        price = 0.0
        for seat in seats:
            reading = self._reading(seat)
            if seat.lag > READ_AT_ONCE or reading >= _SMALL:
                price += reading
                if not account.can_read(price) or (
                    not costs.knows_reading and any(s.lag > READ_AT_ONCE for s in found)
                ):
                    continue
            found.append(seat)
        return found

    def _worth_starting(self, seat: Seat) -> bool:
        value = self._pace.value[seat.stream.last]
        if self._occupancy == 1 and value <= 0.0:
            return False
        if seat.lookup_survivals and value <= self._price.worth(seat.lookup_survivals):
            return False
        # Catching up is paid once, and a draft's worth comes back with every draft that follows.
        drafts = _room_once_read(seat) / (1.0 + max(value, 1.0))
        return seat.lag <= 2 or value * min(drafts, _HORIZON) > self._reading(seat)

    def _worth_a_look(self, seat: Seat) -> bool:
        """Whether a look is worth its reading: not where drafts are known to be worth less, nor near the end."""
        reading = self._reading(seat)
        if reading < _SMALL:
            return True
        return self._pace.value[seat.stream.last] * _HORIZON < reading and _room_once_read(seat) > _HORIZON

    def _reading(self, seat: Seat) -> float:
        """Tokens that the draft model must gain for reading what it has missed."""
        return self._price.rate * self._known.costs.draft_read(seat.lag) if seat.lag > 2 else 0.0

    # --- going on, and choosing what to verify -------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Whether the next tokens of all that still draft, or some number of them, are worth their price."""
        free = [seat for seat in self._seats if not seat.sure]
        active = [seat for seat in free if seat.drafting]
        depth = max(len(seat.tokens) for seat in free)
        surplus = sum(sum(seat.survivals) for seat in free) - self._price.level(depth)
        self._best = max(self._best, surplus)
        room = max((seat.limit - depth for seat in active), default=0)
        return self._price.goes_on(depth, sum(seat.expected for seat in active), room, self._best - surplus)

    def _choose(self) -> None:
        """Pick each seat's better drafter, and how much of it all verify together, or one in a pass of its own."""
        if not self._seats:
            return
        for seat in self._seats:
            seat.choose(self._price)
            seat.keep = min(len(seat.chosen_survivals), seat.limit) if seat.sure else 0
        sure = [seat.keep for seat in self._seats]
        free = [0 if seat.sure else len(seat.chosen_survivals) for seat in self._seats]
        choices = [
            [max(fixed, min(depth, most)) for fixed, most in zip(sure, free, strict=True)]
            for depth in range(max(free) + 1)
        ]
        if self._occupancy > 1 and any(free):
            choices.append(
                [
                    keep if seat.sure else self._price.alone(seat.chosen_survivals)
                    for seat, keep in zip(self._seats, sure, strict=True)
                ]
            )
        values = [self._value(keeps) for keeps in choices]
        best = max(values)
        self._surplus = best - values[0]
        for seat, keep in zip(self._seats, choices[values.index(best)], strict=True):
            seat.keep = keep
            if not seat.exact and keep < seat.stream.knobs.min_tokens:
                seat.keep = self._lengthened(seat, seat.stream.knobs.min_tokens)
        self._passes = self._price.passes([seat.keep for seat in self._seats])

    def _value(self, keeps: Sequence[int]) -> float:
        """Tokens that a step gains which verifies so many of each seat's, net of its price."""
        gain = sum(sum(seat.chosen_survivals[:keep]) for seat, keep in zip(self._seats, keeps, strict=True))
        return gain - self._price.rate * self._price.seconds(self._price.passes(keeps))

    def _lengthened(self, seat: Seat, least: int) -> int:
        """The least length if the draft has it and it pays, else none."""
        survivals = seat.chosen_survivals[:least]
        whole = seat.keep and len(survivals) == least and self._occupancy == 1
        return least if whole and sum(survivals) > self._price.level(least) else 0

    # --- learning ------------------------------------------------------------------------------------------------

    def _judge(self, drafts: int, *, extended: bool) -> None:
        """Update the worth of drafting."""
        known, price = self._known, self._price
        if drafts or not self._behind:  # reading on is neither a look at drafts nor a step without them
            self._pace.stepped(drafts, extended=extended, probing=self._probing)
        elif self._length:
            self._pace.take_back(self._length)
        joint = self._joint_worth()
        for seat in self._seats:
            if seat.survivals:
                known.reach.observe(seat.survivals, seat.expected, known.calibration.run)
            if seat.steps and not seat.sure and price.plain:
                worth = price.worth(seat.survivals) if joint is None else joint
                value = worth - seat.steps * price.step / self._occupancy
                self._pace.judge(seat.stream.last, value, probing=self._probing)

    def _joint_worth(self) -> float | None:
        """What the drafts were worth for each sequence: all verify as many tokens, so a good one gains nothing where
        the others make it too dear. None where each stands for itself: a single one, one that looks for all, or one
        beside lookup's."""
        if self._occupancy == 1 or self._probing or any(seat.looked_up and seat.keep for seat in self._seats):
            return None
        return self._surplus / self._occupancy

    def _account(
        self,
        tokens: int,
        steps: int,
        usual: float,
        drafting: float,
        verifying: float,
        reading: float,
        *,
        extended: bool,
    ) -> None:
        """Update the rate and the credit. `usual`: seconds that such a step was expected to take; `reading`: a part of
        those for `drafting`."""
        known = self._known
        if not self._price.plain:
            return
        spent = min(verifying + drafting, MOST_SURPRISE * usual)  # a hiccup of the machine is nobody's fault
        self._pace.add(tokens, spent)
        if steps or extended or self._behind:
            self._pay(tokens, spent, min(reading, spent))
        elif not any(seat.exact for seat in self._seats):
            known.account.earn(tokens)

    def _pay(self, tokens: int, spent: float, reading: float) -> None:
        """A step that drafted committed so many tokens in `spent` seconds, some of them for reading; what a request
        asked for is its own loss."""
        if self._price.plain and not any(seat.exact for seat in self._seats):
            worth = self._occupancy / self._price.plain
            self._known.account.pay(tokens, worth * spent, worth * reading)


def _room_once_read(seat: Seat) -> float:
    """Tokens that a sequence will have left when the draft model has read what it has missed."""
    return seat.room - seat.lag / READ_AT_ONCE
