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
- several sequences in one batch share one curve T over the rows of a pass. Engines compute sequences in one pass only
  when they have equally many rows, so all draft equally far, as long as the sum of their S is worth the price of one
  row for each; a sequence that parts from the others must be worth a pass of its own.

All of t_d, T, S and the rate are learned while running (`costs`, `calibration`). Neither T nor S depends on the number
of sequences, so what one of them taught is foreseen for many (`reach`), and the next request begins with it.

Safety. Estimates can be wrong, so what drafting may lose is bounded by an account (`account`).

No clock is read and no random number drawn: the same calls always give the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline_worker.request import DraftKnobs
from paceline_worker.speculation.account import Account
from paceline_worker.speculation.calibration import Calibration
from paceline_worker.speculation.costs import Costs
from paceline_worker.speculation.pace import Pace
from paceline_worker.speculation.plain import Plain
from paceline_worker.speculation.reach import Reach
from paceline_worker.speculation.round import Experience, Round
from paceline_worker.speculation.seat import Stream

AUTOMATIC = DraftKnobs(max_tokens=16, min_tokens=0, min_probability=0.0, exact_tokens=None)
"""The bounds when a request sets none: the price decides (docs/decisions/speculation-controller.md has the figures)."""


class Controller:
    """Decides for one pair of models, or one model with prompt lookup, in one worker. Not thread-safe."""

    def __init__(self, costs: Costs | None = None) -> None:
        """`costs` may hold what was measured when the models were loaded; else all is learned on the way."""
        self.costs = Costs() if costs is None else costs
        self.account = Account()
        self._experience = Experience(self.costs, Calibration(), Calibration(), Reach(), self.account)
        self._paces: dict[int, Pace] = {}

    def open(
        self, knobs: DraftKnobs = AUTOMATIC, prompt: Sequence[int] = (), *, model: bool = True, lookup: bool = False
    ) -> Stream:
        """A sequence begins. `model`: a draft model can draft for it; `lookup`: propose from its own tokens too."""
        return Stream(knobs, prompt, model=model, lookup=lookup)

    def plan(self, seats: Sequence[tuple[Stream, int, int]], plain_passes: Sequence[int] = ()) -> Round:
        """One decode step of all sequences of a batch.

        Each seat is the stream, its room (most drafted tokens that could be used: bounded by the output's and the
        context's end) and its lag (committed tokens that the draft model has yet to read; 1 or 2 while it follows).
        `plain_passes`: the rows of each pass that a step without a draft takes; one with a row for each, if not given.
        """
        passes = plain_passes or (max(len(seats), 1),)
        return Round(self._experience, self._pace(len(seats)), seats, passes)

    def plain(self, streams: Sequence[Stream]) -> Plain | None:
        """One decode step of these sequences if it is certain already that none drafts: none has a drafter, or there is
        nothing to look up and drafting was lately not worth it. None where it has to be planned."""
        if not any(stream.drafts for stream in streams):
            return Plain(self.costs, len(streams))
        if any(stream.last or stream.lookup is not None or stream.knobs.exact_tokens is not None for stream in streams):
            return None
        pace = self._pace(len(streams))
        if not (self.account.empty or pace.resting):
            return None
        return Plain(self.costs, len(streams), (pace, self.account))

    def _pace(self, occupancy: int) -> Pace:
        """What drafting has been worth with that many sequences in a batch."""
        key = occupancy.bit_length()
        if key not in self._paces:
            foreseen = self._experience.reach.foresee(self.costs, occupancy)
            self._paces[key] = Pace(occupancy, foreseen, self.costs.verify.at(occupancy))
        return self._paces[key]
