"""Whether to draft, how far, and how much of it to verify: speculation that pays for itself.

Theory. A step drafts k tokens, the main model reads them with the token before them in one batch, and commits those
that agree and one more (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"; Chen et al.
2023, "Accelerating Large Language Model Decoding with Speculative Sampling"). With S_i the probability that the first
i drafted tokens are all accepted, t_d the time of a draft step and T(n) the time to verify n tokens, a step commits
1 + S_1 + ... + S_k tokens on average (with one acceptance rate a for all: (1 - a^(k+1)) / (1 - a), Leviathan et al.,
eq. 1) and takes k t_d + T(1 + k). Their quotient is the goodput to maximize (the term, and choosing k by it: Liu et
al. 2024, "Optimizing Speculative Decoding for Serving Large Language Models Using Goodput"). By renewal reward, the
policy with the largest long-run rate is the one that maximizes, step by step, tokens - rate x seconds (Dinkelbach
1967), which makes it an optimal stopping problem with `rate` as the price of a second:

- one more draft token is worth its price while S > rate x (t_d + T(n + 1) - T(n)), looking past a plateau of T to its
  end: some m ahead must be worth m draft steps and T(n + m) - T(n);
- what was drafted is paid for; verified is the prefix with the largest sum of S - rate x (T(n) - T(1)), none included;
- several sequences in one batch share one curve T, so their drafts are one auction: tokens are taken in order of S
  until no more are worth the price. S falls along a draft, so prefixes stay whole.

All of t_d, T, S and the rate are learned while running (`costs`, `calibration`).

Safety. Estimates can be wrong, so every loss is paid from an account (conservative bandits, Wu et al. 2016): it starts
with `WARM_UP_CREDIT` plain steps, earns `ALLOWANCE` of a plain step per committed token and what drafting gained, up to
`MOST_CREDIT`, and pays what it lost. Nothing is drafted on an empty account. So N tokens take at most
(1 + ALLOWANCE) N + WARM_UP_CREDIT plain steps and the overshoot of one draft, however wrong the estimates of drafting
are; looking again whether a hopeless draft has become good is paid from the same account, at growing intervals.

No clock is read and no random number drawn: the same calls always give the same decisions.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from functools import cache

from paceline_worker.calibration import EDGES, Calibration, Shift, confidence_class
from paceline_worker.costs import Costs
from paceline_worker.lookup import Lookup
from paceline_worker.pace import Pace
from paceline_worker.request import DraftKnobs

AUTOMATIC = DraftKnobs(max_tokens=16, min_tokens=0, min_probability=0.0, exact_tokens=None)
"""The bounds when a request sets none: the price decides (docs/decisions/speculation-controller.md has the figures)."""

WARM_UP_CREDIT = 24.0
"""Plain decoding steps' worth of time that learning may cost in all."""
ALLOWANCE = 0.01
"""Part of plain decoding's time that may be lost for good, probing included."""
MOST_CREDIT = 32.0
"""Past gains pay for no more than this many plain steps' worth of losses."""
LEAST_CREDIT = -8.0
"""Where the account stands after the worst draft: 800 committed tokens later it is even again."""

_PLAIN_STEPS = 3
"""Plain steps that are timed before the first draft."""
_AHEAD = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 48, 64)
_HORIZON = 24
"""Drafts that are counted on when the draft model has to read much before its first."""


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


class Controller:
    """Decides for one pair of models, or one model with prompt lookup, in one worker. Not thread-safe."""

    def __init__(self, costs: Costs | None = None) -> None:
        """`costs` may hold what was measured when the models were loaded; else all is learned on the way."""
        self.costs = Costs() if costs is None else costs
        self.calibration = Calibration()
        self.lookup_calibration = Calibration()
        self.credit = WARM_UP_CREDIT
        """What may still be lost, in plain steps."""
        self._paces: dict[int, Pace] = {}

    def open(
        self, knobs: DraftKnobs = AUTOMATIC, prompt: Sequence[int] = (), *, model: bool = True, lookup: bool = False
    ) -> Stream:
        """A sequence begins. `model`: a draft model can draft for it; `lookup`: propose from its own tokens too."""
        return Stream(knobs, prompt, model=model, lookup=lookup)

    def plan(self, seats: Sequence[tuple[Stream, int, int]]) -> Round:
        """One decode step of all sequences of a batch.

        Each seat is the stream, its room (most drafted tokens that could be used: bounded by the output's and the
        context's end) and its lag (committed tokens that the draft model has yet to read; 1 or 2 while it follows).
        """
        return Round(self, seats)

    def pace(self, occupancy: int) -> Pace:
        """What drafting has been worth with that many sequences in a batch."""
        key = occupancy.bit_length()
        if key not in self._paces:
            self._paces[key] = Pace(alone=occupancy == 1)
        return self._paces[key]

    def pay(self, plain_steps: float) -> None:
        """Book a gain or, if negative, a loss."""
        self.credit = min(max(self.credit + plain_steps, LEAST_CREDIT), MOST_CREDIT)


class Round:
    """One step: ask `wanting` and `offer` until nobody wants more, verify `proposals`, then `settle`.

    With one sequence `offer`'s answer is enough: `on = round.wants()`, `while on: on = round.offer(token, confidence)`.
    """

    def __init__(self, controller: Controller, seats: Sequence[tuple[Stream, int, int]]) -> None:
        self._controller = controller
        costs, calibration = controller.costs, controller.calibration
        self._occupancy = occupancy = len(seats)
        self._pace = controller.pace(occupancy)
        self._seats = [_Seat(stream, room, lag) for stream, room, lag in seats]
        most = sum(seat.limit for seat in self._seats)
        self._verify = table = costs.verify(occupancy).table(occupancy + most)
        self._plain = plain = table[occupancy]
        self._rate = self._pace.rate(plain, occupancy)
        self._step_price = self._rate * costs.draft_step(occupancy)
        self._odds = calibration.odds
        self._next = calibration.next
        self._growth = _growth(min(round(calibration.run * 50), 49))
        self._n = occupancy
        self._gain = self._best = 0.0
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
        if not place.drafting:
            return False
        if not confidence >= place.least and not place.exact:
            place.drafting = False
            return False
        cls = bisect(EDGES, confidence) if confidence == confidence else 0
        odds = self._odds[cls] * place.factor
        probability = odds / (1.0 + odds)
        place.survival = survival = place.survival * probability
        place.tokens.append(token)
        place.classes.append(cls)
        place.probabilities.append(probability)
        place.survivals.append(survival)
        left = place.limit - len(place.tokens)
        if not left:
            place.drafting = False
        if place.sure:
            return place.drafting
        self._gain += survival
        self._n = n = self._n + 1
        surplus = self._gain - self._rate * (self._verify[n] - self._plain)
        if surplus > self._best:
            self._best = surplus
        follows = self._next[cls]
        place.expected = expected = survival * follows * place.factor / (1.0 + follows * (place.factor - 1.0))
        if self._occupancy == 1 and left:
            place.drafting = self._worth(expected, left, self._best - surplus)
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
        proposals = self.proposals()
        n_tokens = self._occupancy + sum(map(len, proposals))
        self._controller.costs.observe_verify(verify_seconds, n_tokens, self._occupancy)
        worked = [seat for seat in self._seats if seat.steps]
        steps = max((seat.steps for seat in worked), default=0)
        lag = max((seat.lag for seat in worked), default=0)
        self._controller.costs.observe_draft(draft_seconds, steps, len(worked), lag)
        self._account(sum(map(len, emitted)), n_tokens, steps, lag, draft_seconds, verify_seconds)
        for seat, tokens, proposal in zip(self._seats, emitted, proposals, strict=True):
            self._learn(seat, tokens, proposal)

    # --- beginning -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Decide which seats draft at all, and look up what costs nothing."""
        controller, pace, occupancy = self._controller, self._pace, self._occupancy
        for seat in self._seats:
            self._look_up(seat)
            seat.drafting = seat.exact and seat.stream.has_model and seat.limit > 0
        ready = controller.costs.measured(occupancy, occupancy) >= _PLAIN_STEPS and not pace.wants_plain
        if not ready or controller.credit <= 0:
            for seat in self._seats:
                if not seat.exact:
                    seat.lookup_survivals = []
            return
        able = [s for s in self._seats if s.stream.has_model and s.limit > 0 and not s.exact]
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
        if pace.may_probe(self._step_price) and not any(seat.drafting for seat in able):
            price = self._step_price + self._rate * sum(controller.costs.draft_read(s.lag) for s in able if s.lag > 2)
            # A price can be wrong: a full account tries it anyway, and a burst that has begun goes on.
            if pace.probing or min(price, MOST_CREDIT / 2) < controller.credit:
                self._probing = True
                for seat in able:
                    seat.drafting = True

    def _worth_starting(self, seat: _Seat) -> bool:
        value = self._pace.value[seat.stream.last]
        if value <= max(self._best_prefix(seat.lookup_survivals), 0.0):
            return False
        # Catching up is paid once, and a draft's worth comes back with every draft that follows.
        return seat.lag <= 2 or value * min(seat.room, _HORIZON) > self._rate * self._controller.costs.draft_read(
            seat.lag
        )

    def _look_up(self, seat: _Seat) -> None:
        """What the sequence's own tokens propose, and the chance of each of them."""
        lookup = seat.stream.lookup
        if lookup is None or seat.limit < 1:
            return
        seat.lookup_tokens, confidence = lookup.propose(seat.limit)
        if not seat.lookup_tokens:
            return
        calibration = self._controller.lookup_calibration
        seat.lookup_class = cls = confidence_class(confidence)
        odds = calibration.odds[cls] * seat.stream.lookup_shift.factor
        survival = seat.lookup_probability = odds / (1.0 + odds)
        follows = calibration.next[cls]
        chance = survival
        for _ in seat.lookup_tokens:
            if chance < seat.least and not seat.exact:
                break
            seat.lookup_survivals.append(survival)
            survival *= follows
            chance = follows

    # --- going on ------------------------------------------------------------------------------------------------

    def _worth(self, expected: float, room: int, depth: float) -> bool:
        """Whether some number of tokens more pays for itself and for `depth`, by which the draft is under its price."""
        table, n, rate, step = self._verify, self._n, self._rate, self._step_price
        here = table[n]
        for ahead, growth in self._growth:
            if ahead > room:
                return False
            if expected * growth - ahead * step - rate * (table[n + ahead] - here) > depth:
                return True
        return False

    def _hold_auction(self, active: list[int]) -> None:
        """Let those seats draft on whose next token belongs to the most valuable continuation of the whole batch."""
        run = self._controller.calibration.run
        bids: list[tuple[float, int, int]] = []
        for i in active:
            seat = self._seats[i]
            bid = seat.expected
            for ahead in range(0 if seat.sure else min(8, seat.limit - len(seat.tokens))):
                bids.append((-bid, ahead, i))
                bid *= run
        bids.sort()
        table, n, rate = self._verify, self._n, self._rate
        best, take, gain, rounds = self._best - (self._gain - rate * (table[n] - self._plain)), 0, 0.0, 0
        for m, (bid, ahead, _) in enumerate(bids, 1):
            gain -= bid
            rounds = max(rounds, ahead + 1)
            value = gain - rounds * self._step_price - rate * (table[n + m] - table[n])
            if value > best:
                best, take = value, m
        winners = {i for _, _, i in bids[:take]}
        for i in active:
            self._seats[i].drafting = self._seats[i].sure or i in winners

    # --- choosing what to verify ---------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Pick each seat's better drafter, and the prefixes whose tokens are worth verifying together."""
        bids: list[tuple[float, int]] = []
        n = self._occupancy
        for i, seat in enumerate(self._seats):
            seat.chosen, survivals = seat.tokens, seat.survivals
            if seat.sure:
                seat.looked_up = not seat.tokens
            else:
                seat.looked_up = self._best_prefix(seat.lookup_survivals) > self._best_prefix(survivals)
            if seat.looked_up:
                survivals = seat.lookup_survivals
                seat.chosen = seat.lookup_tokens[: len(survivals)]
            if seat.sure:
                seat.keep = min(len(survivals), seat.limit)
                n += seat.keep
            else:
                bids.extend((-survival, i) for survival in survivals)
        bids.sort()
        table, rate, best, take, gain = self._verify, self._rate, 0.0, 0, 0.0
        for m, (bid, _) in enumerate(bids, 1):
            gain -= bid
            value = gain - rate * (table[n + m] - table[n])
            if value > best:
                best, take = value, m
        for _, i in bids[:take]:
            self._seats[i].keep += 1
        for seat in self._seats:
            least = seat.stream.knobs.min_tokens
            if seat.exact or seat.keep >= least:
                continue
            whole = seat.keep and len(seat.chosen) >= least
            seat.keep = least if whole and self._occupancy == 1 and self._pays(seat, least) else 0

    def _pays(self, seat: _Seat, length: int) -> bool:
        survivals = seat.lookup_survivals if seat.looked_up else seat.survivals
        n = self._occupancy
        return sum(survivals[:length]) > self._rate * (self._verify[n + length] - self._plain)

    def _best_prefix(self, survivals: Sequence[float]) -> float:
        """Worth in tokens of the most valuable prefix, alone in the batch; 0 if none pays."""
        table, rate, plain = self._verify, self._rate, self._plain
        best = gain = 0.0
        for n, survival in enumerate(survivals, self._occupancy + 1):
            gain += survival
            value = gain - rate * (table[n] - plain)
            if value > best:
                best = value
        return best

    # --- learning ------------------------------------------------------------------------------------------------

    def _account(
        self, tokens: int, n_tokens: int, steps: int, lag: int, draft_seconds: float, verify_seconds: float
    ) -> None:
        """Update the rate, the worth of drafting and the credit."""
        pace, plain, extended = self._pace, self._plain, n_tokens > self._occupancy
        pace.stepped(drafted=steps > 0, extended=extended, probing=self._probing)
        for seat in self._seats:
            if seat.steps and not seat.sure and plain:
                value = self._best_prefix(seat.survivals) - seat.steps * self._step_price / self._occupancy
                pace.judge(seat.stream.last, value, probing=self._probing)
        if not plain or not 0.0 < verify_seconds < math.inf:
            return
        costs = self._controller.costs
        normal = self._verify[n_tokens] + steps * costs.draft_step(self._occupancy)
        normal += costs.draft_read(lag) if lag > 2 else 0.0
        spent = verify_seconds + (draft_seconds if 0.0 < draft_seconds < math.inf else 0.0)
        spent = min(spent, 3.0 * normal)  # a hiccup of the machine is nobody's fault
        pace.add(tokens, spent)
        share = tokens / self._occupancy
        if any(seat.exact for seat in self._seats):
            return
        self._controller.pay((1 + ALLOWANCE) * share - spent / plain if steps or extended else ALLOWANCE * share)

    def _learn(self, seat: _Seat, emitted: Sequence[int], proposal: list[int]) -> None:
        """Compare all that was drafted, verified or not, with what the main model chose."""
        stream, calibration = seat.stream, self._controller.calibration
        if self._probing and seat.tokens[:1] == list(emitted[:1]):
            self._pace.hit()
        previous = -1
        for i, token in enumerate(seat.tokens):
            if i == len(emitted):
                calibration.observe_next(previous, seat.probabilities[i])
                break
            agreed, cls = token == emitted[i], seat.classes[i]
            calibration.observe(cls, agreed)
            stream.shift.observe(seat.probabilities[i], agreed)
            if previous >= 0:
                calibration.observe_next(previous, 1.0 if agreed else 0.0)
            previous = cls
            if not agreed:
                break
        self._learn_lookup(seat, emitted)
        stream.last = 0 if not proposal else 2 if len(emitted) > len(proposal) else 1

    def _learn_lookup(self, seat: _Seat, emitted: Sequence[int]) -> None:
        calibration = self._controller.lookup_calibration
        for i, (token, actual) in enumerate(zip(seat.lookup_tokens, emitted, strict=False)):
            agreed = token == actual
            if i:
                calibration.observe_next(seat.lookup_class, 1.0 if agreed else 0.0)
            else:
                calibration.observe(seat.lookup_class, agreed)
                seat.stream.lookup_shift.observe(seat.lookup_probability, agreed)
            if not agreed:
                return


class _Seat:
    """One stream's part of a round."""

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
        self.least = knobs.min_probability
        self.factor = stream.shift.factor
        self.drafting = False
        self.steps = 0
        self.survival = 1.0
        self.expected = 0.0
        self.tokens: list[int] = []
        self.classes: list[int] = []
        self.probabilities: list[float] = []
        self.survivals: list[float] = []
        self.lookup_tokens: list[int] = []
        self.lookup_survivals: list[float] = []
        self.lookup_class = 0
        self.lookup_probability = 0.0
        self.chosen: list[int] = []
        self.looked_up = False
        self.keep = 0


@cache
def _growth(fiftieths: int) -> tuple[tuple[int, float], ...]:
    """(m, 1 + a + ... + a^(m-1)) for the rate a = fiftieths / 50: what m tokens gain as a multiple of the first."""
    a = fiftieths / 50
    return tuple((m, (1 - a**m) / (1 - a)) for m in _AHEAD)
