"""Runs a speculation policy over acceptance traces and cost curves, in simulated time.

A trace holds, for every position of an output, what the draft would propose there in the true context, whether the main
model agreed, and how sure the draft was of what it would have drafted on after a refused token. The output does not
depend on the policy (sample-and-compare), so any policy can be replayed exactly.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from paceline_worker.request import DraftKnobs
from paceline_worker.speculation import AUTOMATIC, READ_AT_ONCE, Controller, Plain, Round, Stream

TRACES = Path(__file__).parent / "data" / "acceptance-traces.json.gz"
WRONG = -1
"""Stands for a drafted token that the main model refuses."""
_BATCH = 512
"""Tokens that the draft model reads in a pass."""


@dataclass(frozen=True)
class Trace:
    """One output and one draft. `confidence[q]`, `agreed[q]`: in the true context at position q."""

    output: tuple[int, ...]
    confidence: tuple[float, ...]
    agreed: tuple[bool, ...]
    beyond: dict[int, tuple[float, ...]]
    """After a refused token at a position: confidences of what would follow it."""
    prompt: tuple[int, ...] = ()

    def drafted(self, start: int, i: int) -> tuple[int, float] | None:
        """The i-th token drafted at `start` and its confidence; None where the recording ends."""
        for q in range(start, start + i + 1):
            if q >= len(self.output):
                return None
            if not self.agreed[q]:
                if q == start + i:
                    return WRONG, self.confidence[q]
                chain = self.beyond.get(q, ())
                at = start + i - q - 1
                return (WRONG, chain[at]) if at < len(chain) else None
        return self.output[start + i], self.confidence[start + i]

    def accepted(self, start: int, length: int) -> int:
        """How many of the first `length` tokens drafted at `start` agree."""
        n = 0
        while n < length and start + n < len(self.output) and self.agreed[start + n]:
            n += 1
        return n


@dataclass(frozen=True)
class Machine:
    """True costs in units of a plain step: T(n) by size, a draft step, and each further token that it reads in one."""

    name: str
    verify: Callable[[int], float]
    draft_step: float
    draft_read: float = 0.0
    noise: float = 0.0

    def together(self, lengths: Sequence[int], rows: int = 0) -> float:
        """The time to verify so many drafted tokens of each sequence, filled up to `rows` unless that is 0.

        Sequences are computed in one pass as far as they have equally many rows, and what is longer apart.
        """
        if rows:
            return self.verify(rows * len(lengths))
        least = 1 + min(lengths)
        return self.verify(least * len(lengths)) + sum(self.verify(1 + n - least) for n in lengths if 1 + n > least)

    def blur(self, rng: random.Random) -> float:
        return 1.0 + rng.uniform(-self.noise, self.noise) if self.noise else 1.0


@dataclass
class Ride:
    """What a policy took."""

    seconds: float = 0.0
    tokens: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    """Tokens and true seconds so far, after each step."""

    def book(self, tokens: int, seconds: float) -> None:
        self.tokens += tokens
        self.seconds += seconds
        self.history.append((self.tokens, self.seconds))


def curve(points: dict[int, float]) -> Callable[[int], float]:
    """T(n) as straight lines between known sizes, and the last slope beyond."""
    sizes = sorted(points)

    def at(n: int) -> float:
        left = max((s for s in sizes[:-1] if s <= n), default=sizes[0])
        right = sizes[sizes.index(left) + 1]
        return points[left] + (points[right] - points[left]) * (n - left) / (right - left)

    return at


FIXED_LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16)
MACHINES = {
    machine.name: machine
    for machine in (
        # Measured: a model of 1 B parameters on two CPU cores.
        Machine("1b-f16", curve({1: 1, 2: 1.99, 4: 2.76, 8: 2.89, 16: 4.48}), 0.02, 0.0007),
        Machine("1b-f16-quiet", curve({1: 1, 3: 1.52, 4: 1.62, 5: 1.72, 6: 1.8, 8: 2.3, 16: 4.0}), 0.02, 0.0007),
        Machine("1b-q8_0", curve({1: 1, 4: 1.86, 8: 2.85, 16: 4.73}), 0.03, 0.0008),
        Machine("1b-q4_k_m", curve({1: 1, 4: 2.94, 8: 6.17, 16: 12.6}), 0.04, 0.0016),
        # Measured: the sample main model, hardly dearer than its draft.
        Machine("7m", curve({1: 1, 2: 1.5, 3: 1.55, 4: 1.9, 5: 3.6, 8: 5.4, 16: 11.0}), 0.3, 0.01),
        # Invented: a GPU, and a curve of plateaus.
        Machine("flat", curve({1: 1, 16: 1.1, 64: 1.6}), 0.1, 0.002),
        Machine("steps", lambda n: 1.0 if n <= 1 else 1.25 if n <= 4 else 1.5 if n <= 8 else 2.4, 0.05, 0.005),
    )
}


def read_traces(draft: str, temperature: float | None = None, kind: str | None = None) -> list[Trace]:
    """The recorded traces of one draft (`good`, `weak`, `bad`)."""
    traces = []
    for run in json.loads(gzip.decompress(TRACES.read_bytes()))["runs"]:
        if temperature not in (None, run["temperature"]) or kind not in (None, run["kind"]):
            continue
        record = run["drafts"][draft]
        agreed = tuple(mark == "1" for mark in record["agreed"])
        refused = [q for q, yes in enumerate(agreed) if not yes]
        traces.append(
            Trace(
                output=tuple(run["output"]),
                confidence=_confidences(record["confidence"]),
                agreed=agreed,
                beyond={q: _confidences(chain) for q, chain in zip(refused, record["beyond"], strict=True)},
                prompt=tuple(run["prompt"]),
            )
        )
    return traces


def make_trace(rng: random.Random, length: int, rate: Callable[[int], float], sharpness: float) -> Trace:
    """A synthetic trace: acceptance `rate(q)` on average, told by the confidence as well as `sharpness` says.

    Sharpness 0 is a confidence that says nothing, 1 one that says all but is still calibrated within noise.
    """
    confidence, agreed, beyond = [], [], {}
    for q in range(length):
        yes = rng.random() < rate(q)
        guess = (1 - sharpness) * rng.random() + sharpness * (rng.betavariate(8, 1) if yes else rng.betavariate(2, 3))
        confidence.append(guess)
        agreed.append(yes)
        if not yes:
            beyond[q] = tuple((1 - sharpness) * rng.random() + sharpness * rng.betavariate(3, 2) for _ in range(15))
    return Trace(tuple(range(1000, 1000 + length)), tuple(confidence), tuple(agreed), beyond)


def bounded(least: float) -> DraftKnobs:
    """What a request asks for that sets a least probability alone."""
    return replace(AUTOMATIC, min_probability=least)


def with_prompts(traces: Sequence[Trace], tokens: int) -> list[Trace]:
    """The same outputs after prompts of so many tokens, at least as many as they have."""
    return [replace(t, prompt=(-2,) * (tokens - len(t.prompt)) + t.prompt) for t in traces]


def ride(traces: Sequence[Trace], machine: Machine, fixed: int | None = None, **how: Any) -> Ride:
    """One sequence, its traces one request each; otherwise as `ride_together`."""
    return ride_together([traces], machine, fixed, **how)


def ride_together(
    lanes: Sequence[Sequence[Trace]],
    machine: Machine,
    fixed: int | None = None,
    *,
    controller: Controller | None = None,
    knobs: DraftKnobs = AUTOMATIC,
    model: bool = True,
    lookup: bool = False,
    seed: int = 0,
    scale: float = 0.05,
    max_tokens: int | None = None,
    to_the_end: bool = False,
) -> Ride:
    """Several sequences in one batch, each lane its traces one after the other, until the first lane is done.

    The controller decides and sees noisy times, `scale` seconds per plain step, or each sequence drafts `fixed` tokens.
    A draft model first reads what it has missed, as `paceline_worker.drafting` does. `max_tokens`: what every request
    asks for, though its answer ends earlier; the answer's length, if not given. `to_the_end`: until all lanes are done,
    in an ever smaller batch.
    """
    controller, rng, done = controller or Controller(), random.Random(seed), Ride()

    def opened(trace: Trace, following: Sequence[Trace]) -> _Place:
        return _Place(trace, controller.open(knobs, trace.prompt, model=model, lookup=lookup), following)

    now = [opened(lane[0], lane[1:]) for lane in lanes]
    while now:
        seats = [(p.stream, (max_tokens or len(p.trace.output)) - 1 - p.at, p.lag) for p in now]
        round_: Round | Plain | _Fixed
        if fixed is None:
            round_ = controller.plain([p.stream for p in now]) or controller.plan(seats)
        else:
            round_ = _Fixed([min(fixed, room) for _, room, _ in seats])
        draft = 0.0 if isinstance(round_, Plain) else _draft(round_, now, machine, done)
        proposals = round_.proposals()
        lengths = [len(proposal) for proposal in proposals]
        accepted = [p.agreeing(proposal) for p, proposal in zip(now, proposals, strict=True)]
        verify = machine.together(lengths, round_.rows)
        if isinstance(round_, _Fixed):
            verify = min(verify, machine.together(lengths, 0))
        emitted = [p.advance(n) for p, n in zip(now, accepted, strict=True)]
        if not isinstance(round_, _Fixed):
            round_.settle(emitted, scale * draft * machine.blur(rng), scale * verify * machine.blur(rng))
        done.book(sum(map(len, emitted)), draft + verify)
        done.verified += sum(lengths)
        done.accepted += sum(accepted)
        now = [opened(p.following[0], p.following[1:]) if not p.left and p.following else p for p in now]
        if not to_the_end and not all(place.left for place in now):
            break
        now = [place for place in now if place.left]
    return done


def _draft(round_: Round | _Fixed, places: Sequence[_Place], machine: Machine, done: Ride) -> float:
    """Let the draft model propose for all that want it; the time it takes."""
    seconds = 0.0
    while wanting := round_.wanting():
        left, read = _BATCH, 0
        for seat in wanting:
            place = places[seat]
            count = min(place.unread, READ_AT_ONCE, left)
            left -= count
            read += max(0, count - 2)
            place.unread -= count
            place.held += count
            if place.unread:
                round_.stop(seat, behind=True)
                continue
            place.unread = 1
            found = place.trace.drafted(place.at, place.drafted) or (WRONG, 0.5)
            place.drafted += 1
            done.drafted += 1
            round_.offer(*found, seat)
        seconds += machine.draft_step + read * machine.draft_read
    return seconds


def ride_waves(
    requests: list[Trace],
    machine: Machine,
    width: int,
    fixed: int | None = None,
    *,
    controller: Controller | None = None,
) -> Ride:
    """Requests that come `width` at a time: the next ones when all of those before are answered."""
    controller, done = controller or Controller(), Ride()
    for first in range(0, len(requests) - width + 1, width):
        lanes = [[trace] for trace in requests[first : first + width]]
        wave = ride_together(lanes, machine, fixed, controller=controller, seed=first, to_the_end=True)
        done.history += [(done.tokens + tokens, done.seconds + seconds) for tokens, seconds in wave.history]
        done.tokens, done.seconds = done.tokens + wave.tokens, done.seconds + wave.seconds
        done.verified += wave.verified
    return done


class _Fixed:
    """A round that drafts so many tokens for each sequence and verifies them all."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._left = list(lengths)
        self._tokens: list[list[int]] = [[] for _ in lengths]

    def wanting(self) -> list[int]:
        return [seat for seat, left in enumerate(self._left) if left]

    def offer(self, token: int, _: float, seat: int) -> None:
        self._tokens[seat].append(token)
        self._left[seat] -= 1

    def stop(self, seat: int, *, behind: bool) -> None:
        self._left[seat] = 0

    def proposals(self) -> list[list[int]]:
        return self._tokens

    @property
    def rows(self) -> int:
        return 1 + max(map(len, self._tokens))


class _Place:
    """Where one lane of a batch is."""

    def __init__(self, trace: Trace, stream: Stream, following: Sequence[Trace]) -> None:
        self.trace = trace
        self.stream = stream
        self.following = following
        self.at = 0
        """Committed tokens of the output."""
        self.held = -len(trace.prompt)
        """How far the draft model has read, counted like `at`."""
        self.unread = self.lag
        self.drafted = 0
        """Tokens of the draft model in this step."""

    @property
    def lag(self) -> int:
        """Tokens that the draft model has yet to read, the last one included."""
        return self.at - self.held + 1

    @property
    def left(self) -> bool:
        return self.at < len(self.trace.output)

    def agreeing(self, proposal: Sequence[int]) -> int:
        """How much of a proposal is what the output goes on with."""
        n = 0
        for proposed, token in zip(proposal, self.trace.output[self.at :], strict=False):
            if proposed != token:
                break
            n += 1
        return n

    def advance(self, accepted: int) -> tuple[int, ...]:
        """So many proposed tokens were accepted: what this step commits."""
        emitted = self.trace.output[self.at : self.at + accepted + 1]
        if self.drafted:
            self.held = self.at + self.trace.accepted(self.at, min(self.drafted, accepted))
        self.at += len(emitted)
        self.unread, self.drafted = self.lag, 0
        for token in emitted:
            self.stream.extend(token)
        return emitted


def _confidences(text: str) -> tuple[float, ...]:
    """One byte each: log odds in sixteenths, around 128."""
    return tuple(1 / (1 + math.exp((128 - byte) / 16)) for byte in bytes.fromhex(text))
