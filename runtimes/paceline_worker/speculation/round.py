"""One decode step of all sequences of a batch: who drafts on, what is verified, and what is learned from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paceline_worker.speculation.account import Account
from paceline_worker.speculation.calibration import Calibration
from paceline_worker.speculation.costs import Costs
from paceline_worker.speculation.pace import Pace
from paceline_worker.speculation.price import Bid, Price
from paceline_worker.speculation.seat import Seat, Stream

_PLAIN_STEPS = 3
"""Plain steps that are timed before the first draft."""
_HORIZON = 24
"""Drafts that are counted on when the draft model has to read much before its first."""
_AUCTIONED = 8
"""Tokens ahead that a seat bids for when several draft together."""


@dataclass(frozen=True)
class Experience:
    """What was learned with these models on this machine, from all sequences."""

    costs: Costs
    calibration: Calibration
    lookup_calibration: Calibration
    account: Account


class Round:
    """One step: ask `wanting` and `offer` until nobody wants more, verify `proposals`, then `settle`.

    With one sequence `offer`'s answer is enough: `on = round.wants()`, `while on: on = round.offer(token, confidence)`.
    """

    def __init__(self, known: Experience, pace: Pace, seats: Sequence[tuple[Stream, int, int]]) -> None:
        """`pace`: of so many sequences in a batch; each seat: the stream, its room and its lag (`Controller.plan`)."""
        self._known = known
        self._pace = pace
        self._occupancy = occupancy = len(seats)
        self._seats = [Seat(stream, room, lag) for stream, room, lag in seats]
        most = sum(seat.limit for seat in self._seats)
        table = known.costs.verify(occupancy).table(occupancy + most)
        rate = pace.rate(table[occupancy], occupancy)
        self._price = Price(table, occupancy, rate, known.costs.draft_step(occupancy), known.calibration.run)
        self._n = occupancy
        """Tokens of the batch, were all that was drafted verified."""
        self._gain = self._best = 0.0
        """Tokens they are expected to bring; the largest surplus of a beginning of them."""
        self._probing = False
        self._proposals: list[list[int]] | None = None
        self._begin()

    # --- drafting ------------------------------------------------------------------------------------------------

    def wanting(self) -> list[int]:
        """The seats that want their next token in one draft step now; empty when drafting is over."""
        active = [i for i, seat in enumerate(self._seats) if seat.drafting]
        if self._occupancy > 1 and any(self._seats[i].tokens and not self._seats[i].sure for i in active):
            self._hold_auction(active)
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
        if place.sure:
            return place.drafting
        self._gain += place.survivals[-1]
        self._n = n = self._n + 1
        surplus = self._gain - self._price.of(n)
        if surplus > self._best:
            self._best = surplus
        if place.drafting and self._occupancy == 1:
            left = place.limit - len(place.tokens)
            place.drafting = self._price.goes_on(n, place.expected, left, self._best - surplus)
        return place.drafting

    def stop(self, seat: int = 0) -> None:
        """The draft model cannot go on for a seat: it ended the text, or left the shared vocabulary."""
        self._seats[seat].drafting = False

    def proposals(self) -> list[list[int]]:
        """The tokens to verify, for each seat; from then on nothing is taken any more."""
        if self._proposals is None:
            for seat in self._seats:
                seat.drafting = False
            self._choose()
            self._proposals = [seat.chosen[: seat.keep] for seat in self._seats]
        return self._proposals

    def looked_up(self, seat: int = 0) -> bool:
        """Whether a seat's proposal is prompt lookup's, not the draft model's."""
        return self._seats[seat].looked_up

    def settle(self, emitted: Sequence[Sequence[int]], draft_seconds: float, verify_seconds: float) -> None:
        """Learn from the step: what each seat committed (accepted tokens and the main model's own), and the times.

        Seconds that were not measured, or of a batch that also carried prompt chunks, are given as 0.
        """
        n_tokens = self._occupancy + sum(map(len, self.proposals()))
        costs = self._known.costs
        costs.observe_verify(verify_seconds, n_tokens, self._occupancy)
        worked = [seat for seat in self._seats if seat.steps]
        steps = max((seat.steps for seat in worked), default=0)
        lag = max((seat.lag for seat in worked), default=0)
        costs.observe_draft(draft_seconds, steps, len(worked), lag)
        self._judge(drafted=steps > 0, extended=n_tokens > self._occupancy)
        self._account(sum(map(len, emitted)), n_tokens, steps, lag, draft_seconds, verify_seconds)
        for seat, tokens in zip(self._seats, emitted, strict=True):
            if self._probing and seat.tokens[:1] == list(tokens[:1]):
                self._pace.hit()
            seat.learn(tokens, self._known.calibration, self._known.lookup_calibration)

    # --- beginning -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Decide which seats draft at all, and look up what costs nothing."""
        known, pace, occupancy = self._known, self._pace, self._occupancy
        for seat in self._seats:
            seat.look_up(known.lookup_calibration)
            seat.drafting = seat.exact and seat.able
        ready = known.costs.measured(occupancy, occupancy) >= _PLAIN_STEPS and not pace.wants_plain
        if not ready or known.account.empty:
            for seat in self._seats:
                if not seat.exact:
                    seat.lookup_survivals = []
            return
        able = [seat for seat in self._seats if seat.able and not seat.exact]
        if not able:
            return
        length = pace.next_length(min(seat.limit for seat in able))
        if length:
            for seat in able:
                seat.sure = seat.drafting = True
                seat.limit = min(seat.limit, length)
            return
        for seat in able:
            seat.drafting = self._worth_starting(seat)
        if pace.may_probe(self._price.step) and not any(seat.drafting for seat in able):
            price = self._price.step + sum(self._reading(seat) for seat in able if seat.lag > 2)
            if pace.probing or known.account.can_pay(price):  # a burst that has begun goes on
                self._probing = True
                for seat in able:
                    seat.drafting = True

    def _worth_starting(self, seat: Seat) -> bool:
        value = self._pace.value[seat.stream.last]
        if value <= max(self._price.worth(seat.lookup_survivals), 0.0):
            return False
        # Catching up is paid once, and a draft's worth comes back with every draft that follows.
        return seat.lag <= 2 or value * min(seat.room, _HORIZON) > self._reading(seat)

    def _reading(self, seat: Seat) -> float:
        """Tokens that the draft model must gain for reading what it has missed."""
        return self._price.rate * self._known.costs.draft_read(seat.lag)

    # --- going on, and choosing what to verify -------------------------------------------------------------------

    def _hold_auction(self, active: list[int]) -> None:
        """Let those seats draft on whose next token belongs to the most valuable continuation of the whole batch."""
        run = self._known.calibration.run
        bids: list[Bid] = []
        for i in active:
            seat = self._seats[i]
            bid = seat.expected
            for ahead in range(0 if seat.sure else min(_AUCTIONED, seat.limit - len(seat.tokens))):
                bids.append((-bid, ahead + 1, i))
                bid *= run
        bids.sort()
        depth = self._best - (self._gain - self._price.of(self._n))
        winners = {i for _, _, i in bids[: self._price.take(bids, self._n, depth)]}
        for i in active:
            self._seats[i].drafting = self._seats[i].sure or i in winners

    def _choose(self) -> None:
        """Pick each seat's better drafter, and the prefixes whose tokens are worth verifying together."""
        bids: list[Bid] = []
        n = self._occupancy
        for i, seat in enumerate(self._seats):
            seat.choose(self._price)
            if seat.sure:
                seat.keep = min(len(seat.chosen_survivals), seat.limit)
                n += seat.keep
            else:
                bids.extend((-survival, 0, i) for survival in seat.chosen_survivals)
        bids.sort()
        for _, _, i in bids[: self._price.take(bids, n)]:
            self._seats[i].keep += 1
        for seat in self._seats:
            if not seat.exact and seat.keep < seat.stream.knobs.min_tokens:
                seat.keep = self._lengthened(seat, seat.stream.knobs.min_tokens)

    def _lengthened(self, seat: Seat, least: int) -> int:
        """The least length if the draft has it and it pays, else none."""
        survivals = seat.chosen_survivals[:least]
        whole = seat.keep and len(survivals) == least and self._occupancy == 1
        return least if whole and sum(survivals) > self._price.of(1 + least) else 0

    # --- learning ------------------------------------------------------------------------------------------------

    def _judge(self, *, drafted: bool, extended: bool) -> None:
        """Update the worth of drafting."""
        self._pace.stepped(drafted=drafted, extended=extended, probing=self._probing)
        for seat in self._seats:
            if seat.steps and not seat.sure and self._price.plain:
                value = self._price.worth(seat.survivals) - seat.steps * self._price.step / self._occupancy
                self._pace.judge(seat.stream.last, value, probing=self._probing)

    def _account(
        self, tokens: int, n_tokens: int, steps: int, lag: int, draft_seconds: float, verify_seconds: float
    ) -> None:
        """Update the rate and the credit."""
        known, plain = self._known, self._price.plain
        if not plain or not 0.0 < verify_seconds < math.inf:
            return
        normal = self._price.seconds(n_tokens) + steps * known.costs.draft_step(self._occupancy)
        normal += known.costs.draft_read(lag) if lag > 2 else 0.0
        spent = verify_seconds + (draft_seconds if 0.0 < draft_seconds < math.inf else 0.0)
        spent = min(spent, 3.0 * normal)  # a hiccup of the machine is nobody's fault
        self._pace.add(tokens, spent)
        share = tokens / self._occupancy
        if any(seat.exact for seat in self._seats):
            return
        if steps or n_tokens > self._occupancy:
            known.account.pay(share, spent / plain)
        else:
            known.account.earn(share)
