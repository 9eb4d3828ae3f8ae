"""The step loop of every engine: speculative decoding of several generations in one batch.

A step lets the draft model propose for every generation together, and prompt lookup for each, as far as the controller
finds worth its price. Then it decodes in one batch of the main model each generation's last token with its proposal,
and chunks of the prompts that are not done yet. Every position is sampled with its request's own chain; what agrees is
kept and the rest taken back out of both caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from paceline_worker.chunks import draft_room, reading_room, share
from paceline_worker.decoding import Decoding, Prompt, fit_prompt
from paceline_worker.drafting import Drafter
from paceline_worker.grammar import Grammars
from paceline_worker.passes import passes, usual_seconds
from paceline_worker.primitives import ContextT, ModelT, Reader, Sampler, Samplers
from paceline_worker.speculation import Controller, Plain, Round
from paceline_worker.widths import Widths

if TYPE_CHECKING:
    from concurrent.futures import Future

    from paceline_worker.backend import Generation
    from paceline_worker.grammar import Matcher
    from paceline_worker.lanes import Lanes
    from paceline_worker.logprobs import Logits
    from paceline_worker.request import GenerateRequest

CHUNK = 512
"""Tokens computed in one step unless the load says otherwise: the grain of progress and of cancelling."""


class Stepper(Generic[ContextT, ModelT]):
    """A main model and at most one draft, and the generations they run."""

    def __init__(
        self,
        main: Lanes[ContextT, ModelT],
        samplers: Samplers[ContextT],
        *,
        context_length: int,
        chunk: int = CHUNK,
        reader: Reader[ContextT] | None = None,
    ) -> None:
        """`context_length`: tokens of one generation; `chunk`: prompt tokens of one step."""
        self.main = main
        self.context_length = context_length
        self._samplers = samplers
        self._grammars = Grammars(main.model)
        self._chunk = chunk
        self._reader = reader
        self._drafter: Drafter[ContextT, ModelT] | None = None
        self._controller = Controller()
        self._reading, self._verifying = Widths(), Widths()

    def add_draft(self, lanes: Lanes[ContextT, ModelT]) -> None:
        """Have a draft model propose, too."""
        self._drafter = Drafter(lanes, self.main.model.n_vocab, self.context_length)

    def drop_draft(self) -> None:
        """Go on without the draft model, if there is one; what verifying costs stays known."""
        if self._drafter is not None:
            self._drafter.close()
            self._drafter = None
            self._controller = Controller(self._controller.costs)

    def prepare(self, request: GenerateRequest) -> Future[Matcher] | None:
        """A request's grammar, made on another thread; None without one."""
        return None if request.grammar is None else self._grammars.matcher(request.grammar)

    def fit(self, request: GenerateRequest) -> Prompt:
        """What becomes of a request's prompt; may be called from any thread while the model is loaded."""
        return fit_prompt(request, self.main.model, self.context_length)

    def open(
        self, request: GenerateRequest, grammar: Matcher | None = None, prompt: Prompt | None = None
    ) -> Generation:
        """Begin a generation (`Backend.open`)."""
        model = self.main.model
        tokens, output, window, dropped = self.fit(request) if prompt is None else prompt
        with ExitStack() as undo:
            sampler = self._samplers.open(request, tokens, grammar)
            undo.callback(sampler.close)
            lane, cached = self.main.take(tokens)
            undo.callback(self.main.release, lane)
            sequence = _Sequence(
                request=request,
                output=output,
                prompt_tokens=len(tokens),
                cached_tokens=cached,
                prompt_done=cached,
                vocabulary=model,
                tokens=tokens,
                window=window,
                context_dropped=dropped,
                lane=lane,
                sampler=sampler,
                grammar=grammar,
                rest=self.main.resting_point(len(tokens)),
            )
            drafter = self._drafter
            sequence.invite(self._controller, draft_vocabulary=None if drafter is None else drafter.n_vocab)
            if drafter is not None:
                drafter.open(sequence)
            undo.pop_all()
        return sequence

    def step(self, generations: Sequence[Generation]) -> None:
        """Advance each by one chunk of its prompt or one decode step (`Backend.step`)."""
        main = self.main
        sequences = [g for g in generations if isinstance(g, _Sequence)]
        for sequence in sequences:
            sequence.drafted = []
            if sequence.overflows:
                self._roll(sequence)
        lags = [(s, self._lag(s)) for s in sequences]
        decoding = [s for s, lag in lags if lag == 1 and s.prompt_done == s.prompt_tokens]
        decoding.sort(key=_lane)
        prompts = [(s, lag) for s, lag in lags if lag > 1 or s.prompt_done < s.prompt_tokens]
        main.begin()
        round_ = self._plan(decoding, draft_room(main.outputs, len(decoding), len(prompts)))
        started = time.perf_counter()
        if self._drafter is not None and isinstance(round_, Round):
            self._drafter.run(round_, decoding)
        proposals = round_.proposals()
        drafted = time.perf_counter()
        for sequence, proposal in zip(decoding, proposals, strict=True):
            if proposal:
                main.mark(sequence.lane)
        room = main.left - sum(max(round_.rows, 1 + len(proposal)) for proposal in proposals)
        ready = [place for place in ((s, lag, self._is_read_apart(s)) for s, lag in prompts) if place[2] is not None]
        room = min(room, reading_room(len(decoding), len(ready), self._chunk))
        shares = list(zip(ready, share([lag for _, lag, _ in ready], room), strict=True))
        here = [(s, n) for (s, _, is_apart), n in shares if n and not is_apart]
        apart = [(s, n) for (s, _, is_apart), n in shares if n and is_apart]
        verifying, reading, made = self._fill(list(zip(decoding, proposals, strict=True)), here, round_.rows)
        began = time.perf_counter()
        main.decode()
        if made is not None and len(made) == 1:
            self._widths(here).observe(made[0], time.perf_counter() - began)
        emitted = [
            self._verify(sequence, proposal, first, looked_up=round_.looked_up(seat))
            for seat, (sequence, proposal, first) in enumerate(zip(decoding, proposals, verifying, strict=True))
        ]
        for sequence, last in reading:
            if last is not None:
                sequence.begin(*sequence.outputs(main.context, last))
            elif main.length(sequence.lane) == sequence.rest:
                main.remember(sequence.lane)
        self._read_again(decoding)
        if decoding:
            # A batch that also read prompts says nothing about what verifying costs.
            verify_s = 0.0 if prompts else time.perf_counter() - drafted
            round_.settle(emitted, drafted - started, verify_s, made)
        for sequence, count in apart:
            self._read_apart(sequence, count)

    def finish(self, generation: Generation) -> None:
        """The generation ended or was cancelled (`Backend.close`)."""
        assert isinstance(generation, _Sequence)
        generation.sampler.close()
        if self._reader is not None:
            self._reader.forget(generation.lane)
        self.main.release(generation.lane)

    def close(self) -> None:
        """Forget both models."""
        self._grammars.close()
        self.drop_draft()
        self._samplers.close()
        if self._reader is not None:
            self._reader.close()
        self.main.close()

    # --- prompts ---------------------------------------------------------------------------------------------------

    def _lag(self, sequence: _Sequence) -> int:
        """How many of a sequence's tokens have no state yet."""
        apart = None if self._reader is None else self._reader.progress(sequence.lane)
        return len(sequence.tokens) - (self.main.length(sequence.lane) if apart is None else apart)

    def _chunk_end(self, sequence: _Sequence, count: int) -> int:
        """Where the next `count` tokens of a prompt end, or before, where its state is to be remembered."""
        start = self.main.length(sequence.lane)
        end = start + count
        return sequence.rest if sequence.rest is not None and start < sequence.rest < end else end

    def _add_chunk(self, sequence: _Sequence, end: int) -> int | None:
        """Put a prompt's tokens up to `end` into the batch; the index of its logits if they are the last."""
        sequence.prompt_done = max(sequence.prompt_done, min(end, sequence.prompt_tokens))
        last = end == len(sequence.tokens)
        tokens = sequence.tokens[self.main.length(sequence.lane) : end]
        index = self.main.add(sequence.lane, tokens, outputs=1 if last else 0)
        return index if last else None

    def _is_read_apart(self, sequence: _Sequence) -> bool | None:
        """Whether the next part of a prompt is the reader's; None if it has to wait for a prompt before it."""
        lane, reader = sequence.lane, self._reader
        if reader is None:
            return False
        held = self.main.length(lane)
        if reader.progress(lane) is not None:
            return True
        if not reader.takes(sequence.tokens, held):
            return False
        if reader.begin(lane, sequence.tokens, held):
            return True
        return None if reader.takes(sequence.tokens, held) else False

    def _read_apart(self, sequence: _Sequence, count: int) -> None:
        assert self._reader is not None
        lane, prompt = sequence.lane, sequence.tokens[:]

        def begin(context: ContextT, last: int) -> None:
            sequence.begin(*sequence.outputs(context, last))

        held = self._reader.read(lane, prompt, count, begin)
        if held is not None:
            self.main.hold(lane, prompt[:held])
        done = self._reader.progress(lane) if held is None else held
        assert done is not None
        sequence.prompt_done = max(sequence.prompt_done, min(done, sequence.prompt_tokens))

    # --- the batch -------------------------------------------------------------------------------------------------

    def _fill(
        self,
        verified: Sequence[tuple[_Sequence, Sequence[int]]],
        read: Sequence[tuple[_Sequence, int]],
        rows: int,
    ) -> tuple[list[int], list[tuple[_Sequence, int | None]], tuple[int, ...] | None]:
        """Put into the batch each last token with its proposal, and so many tokens of prompts.

        Returns where the outputs of each proposal begin, of each prompt `_add_chunk`'s answer, and the rows of each
        pass if they are known. All go in by lane, filled up where the engine wants it so that several passes over the
        weights become one: proposals to `rows`, and whatever else saves time (`Lanes.evened`, `Lanes.widened`).
        """
        main = self.main
        proposals = {s.lane: proposal for s, proposal in verified}
        ends = {s.lane: (s, self._chunk_end(s, count)) for s, count in read}
        wanted = {lane: end - main.length(lane) for lane, (_, end) in ends.items()}
        for sequence, proposal in verified:
            lane, own = sequence.lane, 1 + len(proposal)
            fits = main.context.wants_even and main.length(lane) + rows <= self.context_length
            wanted[lane] = max(own, rows) if fits else own
        wanted = main.evened(wanted, self.context_length, self._seconds)
        wanted = main.widened(wanted, self.context_length, self._widths(read).best)
        tokens = {s.lane: s.tokens[-1] for s, _ in verified}
        firsts: dict[int, int] = {}
        reading = []
        for lane in sorted(wanted):
            before = main.length(lane)
            if lane in ends:
                sequence, end = ends[lane]
                reading.append((sequence, self._add_chunk(sequence, end)))
            elif lane in proposals:
                own_tokens = [tokens[lane], *proposals[lane]]
                firsts[lane] = main.add(lane, own_tokens, outputs=len(own_tokens))
            if missing := wanted[lane] - (main.length(lane) - before):
                main.fill(lane, missing)
        made = passes(wanted) if main.context.wants_even and wanted else None
        return [firsts[s.lane] for s, _ in verified], reading, made

    def _widths(self, read: Sequence[object]) -> Widths:
        """What is known of batches that read prompts, of which few tokens have logits, or of those that do not."""
        return self._reading if read else self._verifying

    def _seconds(self, rows: int) -> float:
        """What a pass takes. More rows than were ever timed are not believed to cost as little as the last ones did;
        fewer are believed to cost as little as can be, so that they get timed."""
        verify = self._controller.costs.verify
        if not verify.known:
            return usual_seconds(rows)
        if rows < (least := verify.least):
            return verify.at(least) * rows / least
        known = min(rows, verify.largest)
        return usual_seconds(rows, (known, verify.at(known)))

    # --- generations -----------------------------------------------------------------------------------------------

    def _roll(self, sequence: _Sequence) -> None:
        """Make room in a full context."""
        assert sequence.window is not None
        start, count = sequence.window.keep, sequence.window.step
        self.main.cut(sequence.lane, start, count)
        if self._drafter is not None:
            self._drafter.cut(sequence, start, count)
        sequence.roll()

    def _plan(self, sequences: Sequence[_Sequence], room: int) -> Round | Plain:
        """What the controller makes of this step, in which each can verify so many drafted tokens."""
        if (plain := self._controller.plain([sequence.stream for sequence in sequences])) is not None:
            return plain
        seats = []
        for sequence in sequences:
            lag = 0 if self._drafter is None else self._drafter.lag(sequence)
            seats.append((sequence.stream, min(room, sequence.room), lag))
        if not self.main.context.wants_even:
            return self._controller.plan(seats)
        rows = self.main.evened(dict.fromkeys(map(_lane, sequences), 1), self.context_length, self._seconds)
        return self._controller.plan(seats, passes(rows))

    def _verify(self, sequence: _Sequence, proposal: Sequence[int], first: int, *, looked_up: bool) -> list[int]:
        """Commit what the main model says from output `first` on, and take the rest out of the caches."""
        base = len(sequence.tokens)
        emitted, accepted = sequence.verify(proposal, *sequence.outputs(self.main.context, first), looked_up=looked_up)
        self.main.truncate(sequence.lane, base + accepted)
        if self._drafter is not None:
            self._drafter.settle(sequence, emitted)
        return emitted

    def _read_again(self, sequences: Sequence[_Sequence]) -> None:
        """Where a state had to go back further than the draft was wrong, read what was right once more."""
        main = self.main
        main.begin()
        for sequence in sequences:
            behind = len(sequence.tokens) - 1 - main.length(sequence.lane)
            if sequence.output.stop_reason is None and 0 < behind <= main.left:
                main.add(sequence.lane, sequence.tokens[-1 - behind : -1], outputs=0)
        main.decode()


def _lane(sequence: _Sequence) -> int:
    return sequence.lane


@dataclass
class _Sequence(Decoding):
    sampler: Sampler[Any] = field(kw_only=True)
    rest: int | None = None
    """After how many tokens of the prompt the state is remembered."""

    def outputs(self, context: Any, first: int) -> tuple[Callable[[int], int], Callable[[int], Logits]]:
        """What gives the main model's tokens, and its logits, from output `first` of the last batch on."""
        return (lambda i: self.sampler.sample(context, first + i), lambda i: context.logits(first + i))
