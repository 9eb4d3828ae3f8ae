"""Speculative decoding over mlx-lm's models, several generations in one batch.

A step lets the draft model propose for every generation together, and prompt lookup for each, as far as the controller
finds worth its price. Then it computes in one batch of the main model each generation's last token with its proposal,
and chunks of the prompts that are not done yet. Every position is sampled with its request's own chain; what agrees is
kept and the rest taken back out of both caches. What the draft computed for accepted tokens stays in its cache: no
token is computed twice on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline_mlx_worker import binding
from paceline_mlx_worker.context import CHUNK, Context, Logits
from paceline_mlx_worker.memory import memory_of
from paceline_mlx_worker.sampler import Sampler, Samplers
from paceline_worker import grammar, lanes
from paceline_worker.backend import Backend, Generation, LoadRequest
from paceline_worker.chunks import share
from paceline_worker.decoding import Decoding, check_tokens, fit_prompt
from paceline_worker.options import Options, invalid
from paceline_worker.protocol import Fault
from paceline_worker.request import MAX_DRAFT, GenerateRequest
from paceline_worker.speculation import Controller, Round, Stream

Lanes = lanes.Lanes[Context, binding.Model]

_SHARED_CHUNK = 128
"""Prompt tokens per step beside running generations, which wait no longer than these take."""

_DEFAULT_CONTEXT = 4096
_DEFAULT_SLOTS = 8
_DEFAULT_POOL = 16384
"""Tokens of context, over all slots, up to which more than one slot is made unasked."""

_CACHE_BITS = {"q8_0": 8, "q4_0": 4}
_CACHE_OPTIONS = ("cache_type_k", "cache_type_v")

_CANNOT_ROLL_BACK = "a recurrent model's state cannot be rolled back: no draft is possible"


class MlxBackend(Backend):
    engine = "mlx"
    version = binding.VERSION
    features = ("generate", "draft", "lookup", "overflow", "tokenize", "logprobs", *grammar.FEATURES)
    load_options = (*_CACHE_OPTIONS, "parallel", "embedding")

    def __init__(self) -> None:
        binding.start()
        self.slots = 1
        self._n_ctx = 0
        self._main: Lanes | None = None
        self._draft: Lanes | None = None
        self._samplers: Samplers | None = None
        self._controller = Controller()

    def devices(self) -> list[dict[str, Any]]:
        return binding.devices()

    def load(self, role: str, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        if role == "draft" and self._main is None:
            raise Fault("not_loaded", "a draft is loaded after its main model")
        known = self.load_options if role == "main" else _CACHE_OPTIONS
        options = Options(request.options, known, "mlx" if role == "main" else "an mlx draft")
        bits = _cache_bits(options)
        parallel = options.whole("parallel", least=1, most=64)
        self.unload(role)
        model = binding.Model(request.path, progress=progress)
        try:
            context = Context(model, memory := memory_of(model.net, bits))
            if role == "main":
                self._n_ctx = request.context_length or min(model.n_ctx_train or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
                unasked = max(1, min(_DEFAULT_SLOTS, _DEFAULT_POOL // self._n_ctx))
                self.slots = min(parallel or unasked, memory.count or parallel or unasked)
                self._main = Lanes(context, model, self.slots, self.slots * (1 + MAX_DRAFT))
                self._samplers = Samplers(model, self._n_ctx)
            else:
                assert self._main is not None
                if not (context.can_roll_back and self._main.context.can_roll_back):
                    raise Fault("unsupported", _CANNOT_ROLL_BACK)
                if memory.count is not None and memory.count < self.slots:
                    raise Fault("unsupported", "this draft's layers keep the state of one sequence only")
                self._draft = Lanes(context, model, self.slots, self.slots)
        except BaseException:
            model.close()
            raise
        return {"context_length": self._n_ctx, "vocabulary": model.n_vocab, "slots": self.slots}

    def unload(self, role: str) -> None:
        if self._draft is not None:
            self._draft.close()
            self._draft = None
            self._controller = Controller(self._controller.costs)
        if role == "main" and self._main is not None:
            self._main.close()
            self._main = self._samplers = None
            self._controller = Controller()

    def open(self, request: GenerateRequest) -> Generation:
        main = self._loaded()
        tokens, output, window, dropped = fit_prompt(request, main.model, self._n_ctx)
        assert self._samplers is not None
        sampler = self._samplers.open(request, tokens)
        lane, cached = main.take(tokens)
        generation = _Sequence(
            request=request,
            output=output,
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            prompt_done=cached,
            vocabulary=main.model,
            tokens=tokens,
            window=window,
            context_dropped=dropped,
            lane=lane,
            sampler=sampler,
            grammar=sampler.grammar,
        )
        generation.invite(
            self._controller,
            draft_vocabulary=None if self._draft is None else self._draft.model.n_vocab,
            obstacle=None if main.context.can_roll_back else _CANNOT_ROLL_BACK,
        )
        if self._draft is not None and generation.draft_vocabulary is not None:
            self._draft.reuse(lane, tokens)
        return generation

    def step(self, generations: Sequence[Generation]) -> None:
        main = self._loaded()
        sequences = [g for g in generations if isinstance(g, _Sequence)]
        for sequence in sequences:
            if sequence.overflows:
                self._roll(main, sequence)
        lags = [(s, len(s.tokens) - main.length(s.lane)) for s in sequences]
        decoding = [s for s, lag in lags if lag == 1 and s.prompt_done == s.prompt_tokens]
        prompts = [(s, lag) for s, lag in lags if lag > 1 or s.prompt_done < s.prompt_tokens]
        round_ = self._plan(decoding)
        started = time.perf_counter()
        self._run_draft(round_, decoding)
        proposals = round_.proposals()
        drafted = time.perf_counter()
        main.begin()
        verifying = [
            main.add(s.lane, [s.tokens[-1], *proposal], outputs=1 + len(proposal))
            for s, proposal in zip(decoding, proposals, strict=True)
        ]
        shares = share([lag for _, lag in prompts], _SHARED_CHUNK if decoding else CHUNK)
        reading = [_add_chunk(main, s, n) for (s, _), n in zip(prompts, shares, strict=True) if n]
        main.decode()
        emitted = [
            self._verify(main, sequence, proposal, first, looked_up=round_.looked_up(seat))
            for seat, (sequence, proposal, first) in enumerate(zip(decoding, proposals, verifying, strict=True))
        ]
        if decoding:
            # A batch that also read prompts says nothing about what verifying costs.
            verify_s = 0.0 if prompts else time.perf_counter() - drafted
            round_.settle(emitted, drafted - started, verify_s)
        for sequence, last in reading:
            if last is not None:
                sequence.begin(*sequence.outputs(main.context, last))

    def close(self, generation: Generation) -> None:
        assert isinstance(generation, _Sequence)
        self._loaded().release(generation.lane)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return self._loaded().model.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        model = self._loaded().model
        check_tokens(tokens, model.n_vocab, "tokens")
        return b"".join(model.spell(token, special=True) for token in tokens)

    # --- opening ---------------------------------------------------------------------------------------------------

    def _loaded(self) -> Lanes:
        if self._main is None:
            raise Fault("not_loaded", "no model is loaded")
        return self._main

    # --- one step --------------------------------------------------------------------------------------------------

    def _roll(self, main: Lanes, sequence: _Sequence) -> None:
        """Make room in a full context."""
        assert sequence.window is not None
        start, count = sequence.window.keep, sequence.window.step
        main.cut(sequence.lane, start, count)
        if self._draft is not None and sequence.draft_vocabulary is not None:
            self._draft.cut(sequence.lane, start, count)
        sequence.roll()

    def _verify(
        self, main: Lanes, sequence: _Sequence, proposal: Sequence[int], first: int, *, looked_up: bool
    ) -> list[int]:
        """Commit what the main model says from output `first` on, and take the rest out of the caches."""
        base = len(sequence.tokens)
        emitted, accepted = sequence.verify(proposal, *sequence.outputs(main.context, first), looked_up=looked_up)
        main.truncate(sequence.lane, base + accepted)
        if self._draft is not None and sequence.draft_vocabulary is not None:
            self._draft.truncate(sequence.lane, base + sequence.agreed(emitted))
        return emitted

    # --- drafting --------------------------------------------------------------------------------------------------

    def _plan(self, sequences: Sequence[_Sequence]) -> Round:
        """What the controller makes of this step."""
        seats: list[tuple[Stream, int, int]] = []
        for sequence in sequences:
            sequence.drafted, lag = [], 0
            if self._draft is not None and sequence.draft_vocabulary is not None:
                sequence.unread = self._draft.missing(sequence.lane, sequence.tokens)
                lag = len(sequence.unread)
            seats.append((sequence.stream, min(sequence.room, MAX_DRAFT), lag))
        return self._controller.plan(seats)

    def _run_draft(self, round_: Round, sequences: Sequence[_Sequence]) -> None:
        """Continue greedily every sequence that is worth it, all in one batch a token."""
        draft, n_vocab = self._draft, self._loaded().model.n_vocab
        while draft is not None and (wanting := round_.wanting()):
            draft.begin()
            rows = {}
            for seat in wanting:
                sequence = sequences[seat]
                if len(sequence.unread) > CHUNK:
                    # Far behind, on a long prompt, it reads a chunk a step and the others go on.
                    draft.add(sequence.lane, sequence.unread[:CHUNK], outputs=0)
                    round_.stop(seat)
                else:
                    rows[seat] = draft.add(sequence.lane, sequence.unread, outputs=1)
            draft.decode()
            for seat, row in rows.items():
                sequence = sequences[seat]
                token, probability = draft.context.likeliest_with_probability(row)
                if token >= n_vocab:
                    round_.stop(seat)
                    continue
                sequence.drafted.append(token)
                sequence.unread = [token]
                round_.offer(token, probability, seat)
                if draft.model.ends(token):
                    round_.stop(seat)


@dataclass
class _Sequence(Decoding):
    lane: int = field(kw_only=True)
    sampler: Sampler = field(kw_only=True)
    unread: Sequence[int] = ()
    """What the draft is to read next."""

    def outputs(self, context: Context, first: int) -> tuple[Callable[[int], int], Callable[[int], Logits]]:
        """What gives the main model's tokens, and its logits, from output `first` of the last batch on."""
        return (lambda i: self.sampler.sample(context, first + i), lambda i: context.logits(first + i))


def _add_chunk(main: Lanes, sequence: _Sequence, count: int) -> tuple[_Sequence, int | None]:
    """Put the next tokens of a prompt into the batch; the index of its logits if they are the last."""
    start = main.length(sequence.lane)
    end = start + count
    sequence.prompt_done = max(sequence.prompt_done, min(end, sequence.prompt_tokens))
    last = end == len(sequence.tokens)
    index = main.add(sequence.lane, sequence.tokens[start:end], outputs=1 if last else 0)
    return sequence, index if last else None


def _cache_bits(options: Options) -> int | None:
    """How keys and values are quantized; None when they are not."""
    keys, values = (options.one_of(name, tuple(_CACHE_BITS)) for name in _CACHE_OPTIONS)
    if keys != values:
        raise invalid("cache_type_v", f"mlx quantizes keys and values alike, not keys {keys} and values {values}")
    return None if keys is None else _CACHE_BITS[keys]
