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
from dataclasses import dataclass, field
from pathlib import Path

from paceline_worker.request import DraftKnobs
from paceline_worker.speculation import AUTOMATIC, Controller

TRACES = Path(__file__).parent / "data" / "acceptance-traces.json.gz"
WRONG = -1
"""Stands for a drafted token that the main model refuses."""


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
    """True costs in units of a plain step: T(n) by size, and a draft step."""

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


def ride_fixed(traces: list[Trace], machine: Machine, k: int, least: float = 0.0) -> Ride:
    """Always draft k tokens, or until the draft's confidence falls below `least`. True costs, no noise."""
    ride = Ride()
    for trace in traces:
        q = 0
        while q < len(trace.output):
            steps = kept = 0
            while kept < min(k, len(trace.output) - 1 - q):
                steps += 1
                found = trace.drafted(q, kept) or (WRONG, 0.5)
                if found[1] < least:
                    break
                kept += 1
            accepted = trace.accepted(q, kept)
            ride.book(accepted + 1, steps * machine.draft_step + machine.verify(1 + kept))
            ride.drafted += steps
            ride.verified += kept
            ride.accepted += accepted
            q += accepted + 1
    return ride


def ride(
    traces: list[Trace],
    machine: Machine,
    *,
    controller: Controller | None = None,
    knobs: DraftKnobs = AUTOMATIC,
    model: bool = True,
    lookup: bool = False,
    seed: int = 0,
    scale: float = 0.05,
) -> Ride:
    """The controller over the traces, one request each; it sees noisy times, `scale` seconds per plain step."""
    controller = controller or Controller()
    rng = random.Random(seed)
    done = Ride()
    for trace in traces:
        stream = controller.open(knobs, trace.prompt, model=model, lookup=lookup)
        q, read = 0, -len(trace.prompt)
        while q < len(trace.output):
            step = controller.plan([(stream, len(trace.output) - 1 - q, q - read + 1)])
            steps, on = 0, step.wants()
            while on:
                token, confidence = trace.drafted(q, steps) or (WRONG, 0.5)
                steps += 1
                on = step.offer(token, confidence)
            proposal = step.proposals()[0]
            accepted = 0
            while accepted < len(proposal) and proposal[accepted] == trace.output[q + accepted]:
                accepted += 1
            draft_true = 0.0
            if steps:
                draft_true = steps * machine.draft_step + max(0, q - read - 1) * machine.draft_read
                read = q + trace.accepted(q, min(steps, accepted))
            verify_true = machine.verify(1 + len(proposal))
            for token in trace.output[q : q + accepted + 1]:
                stream.extend(token)
            step.settle(
                [trace.output[q : q + accepted + 1]],
                scale * draft_true * machine.blur(rng),
                scale * verify_true * machine.blur(rng),
            )
            done.book(accepted + 1, draft_true + verify_true)
            done.drafted += steps
            done.verified += len(proposal)
            done.accepted += accepted
            q += accepted + 1
    return done


def ride_together(
    lanes: list[list[Trace]],
    machine: Machine,
    fixed: int | None = None,
    *,
    controller: Controller | None = None,
    seed: int = 0,
    to_the_end: bool = False,
) -> Ride:
    """Several sequences in one batch, each lane its traces one after the other, until the first lane is done.

    The controller decides, or each drafts `fixed` tokens; `to_the_end`: until all are done, in an ever smaller batch.
    """
    controller, rng, done = controller or Controller(), random.Random(seed), Ride()
    now = [_Place(lane[0], controller, lane[1:]) for lane in lanes]
    while now:
        rooms = [len(p.trace.output) - 1 - p.at for p in now]
        step = controller.plan([(p.stream, room, 1) for p, room in zip(now, rooms, strict=True)])
        steps = 0
        while wanting := step.wanting() if fixed is None else []:
            for i in wanting:
                step.offer(*(now[i].trace.drafted(now[i].at, steps) or (WRONG, 0.5)), i)
            steps += 1
        lengths = [len(p) for p in step.proposals()] if fixed is None else [min(fixed, room) for room in rooms]
        steps = max(steps, *lengths)
        accepted = [p.trace.accepted(p.at, length) for p, length in zip(now, lengths, strict=True)]
        draft = steps * machine.draft_step
        verify = machine.together(lengths, 1 + max(lengths) if fixed is not None else step.rows)
        if fixed is None:
            emitted = [p.trace.output[p.at : p.at + n + 1] for p, n in zip(now, accepted, strict=True)]
            step.settle(emitted, 0.05 * draft * machine.blur(rng), 0.05 * verify * machine.blur(rng))
        done.book(sum(accepted) + len(now), draft + verify)
        done.verified += sum(lengths)
        for place, n in zip(now, accepted, strict=True):
            place.advance(n + 1, controller)
        if not to_the_end and not all(place.left for place in now):
            break
        now = [place for place in now if place.left]
    return done


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


class _Place:
    """Where one lane of a batch is."""

    def __init__(self, trace: Trace, controller: Controller, following: list[Trace]) -> None:
        self.trace = trace
        self.at = 0
        self.stream = controller.open()
        self._following = following

    @property
    def left(self) -> bool:
        return self.at < len(self.trace.output)

    def advance(self, tokens: int, controller: Controller) -> None:
        """So many tokens were committed; the lane's next trace begins when this one is over."""
        self.at += tokens
        if not self.left and self._following:
            self.trace, *self._following = self._following
            self.at, self.stream = 0, controller.open()


def _confidences(text: str) -> tuple[float, ...]:
    """One byte each: log odds in sixteenths, around 128."""
    return tuple(1 / (1 + math.exp((128 - byte) / 16)) for byte in bytes.fromhex(text))
