"""Speculative decoding over two llama.cpp contexts, several generations in one batch.

A step lets the draft model propose for every generation together, and prompt lookup for each, as far as the controller
finds worth its price. Then it decodes in one batch of the main model each generation's last token with its proposal,
and chunks of the prompts that are not done yet. Every position is sampled with its request's own chain; what agrees is
kept and the rest taken back out of both caches. What the draft computed for accepted tokens stays in its cache: no
token is decoded twice on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paceline_llama_cpp_worker import binding
from paceline_llama_cpp_worker.embedding import Embedder
from paceline_llama_cpp_worker.lanes import Lanes
from paceline_llama_cpp_worker.options import MAIN_OPTIONS, LoadOptions, read_options
from paceline_llama_cpp_worker.reading import Reader
from paceline_llama_cpp_worker.sampler import Sampler, Samplers
from paceline_worker import grammar
from paceline_worker.backend import Backend, Generation, LoadRequest
from paceline_worker.chunks import draft_room, share
from paceline_worker.decoding import Decoding, check_tokens, fit_prompt
from paceline_worker.protocol import Fault
from paceline_worker.request import MAX_DRAFT, GenerateRequest
from paceline_worker.speculation import Controller, Round, Stream

_BATCH = 512
"""Tokens computed in one step: the grain of progress and of cancelling."""

_SHARED_CHUNK = 128
"""Prompt tokens per step beside running generations, which wait no longer than these take."""

_DEFAULT_CONTEXT = 4096
_DEFAULT_EMBEDDING_CONTEXT = 2048
_DEFAULT_SLOTS = 8
_DEFAULT_POOL = 16384
"""Tokens of context, over all slots, up to which more than one slot is made unasked."""

_DRAFT_PER_SLOT = 16


class LlamaBackend(Backend):
    engine = "llama.cpp"
    version = binding.VERSION
    features = (
        *("generate", "draft", "lookup", "embed", "tokenize", "lora", "overflow", "logprobs"),
        *grammar.FEATURES,
    )
    load_options = MAIN_OPTIONS

    def __init__(self) -> None:
        binding.start()
        self.slots = 1
        self._n_ctx = 0
        self._batch = _BATCH
        self._main: Lanes | None = None
        self._reader: Reader | None = None
        self._draft: Lanes | None = None
        self._samplers: Samplers | None = None
        self._embedder: Embedder | None = None
        self._controller = Controller()

    def devices(self) -> list[dict[str, Any]]:
        return binding.devices()

    def load(self, role: str, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        if role == "draft" and self._main is None:
            raise Fault("not_loaded", "a draft is loaded after its main model")
        options = read_options(request.options, role, binding.gpus())
        self.unload(role)
        model = binding.Model(request.path, placement=options.placement, adapters=options.adapters, progress=progress)
        try:
            if role == "main" and (not model.is_generative or options.embedding):
                self._n_ctx = request.context_length or min(model.n_ctx_train, _DEFAULT_EMBEDDING_CONTEXT)
                self.slots = 1
                self._embedder = Embedder(model, n_ctx=self._n_ctx, threads=request.threads, options=options.context)
                memory = self._embedder.memory
            elif not model.is_generative:
                raise Fault("load_failed", f"{request.path} is no model that generates text token by token")
            elif role == "main":
                self._n_ctx = request.context_length or min(model.n_ctx_train, _DEFAULT_CONTEXT)
                unasked = max(1, min(_DEFAULT_SLOTS, _DEFAULT_POOL // self._n_ctx))
                self.slots = options.parallel or unasked
                self._batch = options.batch or _BATCH
                outputs = max(1 + MAX_DRAFT, self.slots * (1 + _DRAFT_PER_SLOT))
                self._main = self._lanes(model, request, options, outputs=outputs)
                self._samplers = Samplers(model, self._n_ctx)
                memory = self._main.context.memory
                self._reader = Reader(
                    self._main.context, model, options=options.context, batch=self._batch, threads=request.threads
                )
            else:
                assert self._main is not None
                self._draft = self._lanes(model, request, options, outputs=self.slots)
                memory = self._draft.context.memory
        except BaseException:
            model.close()
            raise
        return {
            "context_length": self._n_ctx,
            "vocabulary": model.n_vocab,
            "slots": self.slots,
            "memory": memory,
        }

    def unload(self, role: str) -> None:
        if self._draft is not None:
            self._draft.close()
            self._draft = None
            self._controller = Controller(self._controller.costs)
        if role == "main" and self._main is not None:
            assert self._samplers is not None
            self._samplers.close()
            self._samplers = None
            if self._reader is not None:
                self._reader.stop()
                self._reader = None
            self._main.close()
            self._main = None
            self._controller = Controller()
        if role == "main" and self._embedder is not None:
            self._embedder.close()
            self._embedder = None

    def open(self, request: GenerateRequest) -> Generation:
        main = self._loaded()
        assert self._samplers is not None
        tokens, output, window, dropped = fit_prompt(request, main.model, self._n_ctx)
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
            rest=main.resting_point(len(tokens)),
        )
        generation.invite(
            self._controller,
            draft_vocabulary=None if self._draft is None else self._draft.model.n_vocab,
            obstacle=None,
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
        lags = [(s, self._lag(main, s)) for s in sequences]
        decoding = [s for s, lag in lags if lag == 1 and s.prompt_done == s.prompt_tokens]
        prompts = [(s, lag) for s, lag in lags if lag > 1 or s.prompt_done < s.prompt_tokens]
        round_ = self._plan(decoding, draft_room(main.outputs, len(decoding), len(prompts)))
        started = time.perf_counter()
        self._run_draft(round_, decoding)
        proposals = round_.proposals()
        drafted = time.perf_counter()
        for sequence, proposal in zip(decoding, proposals, strict=True):
            if proposal:
                main.mark(sequence.lane)
        main.begin()
        verifying = [
            main.add(s.lane, [s.tokens[-1], *proposal], outputs=1 + len(proposal))
            for s, proposal in zip(decoding, proposals, strict=True)
        ]
        shares = share([lag for _, lag in prompts], min(main.left, _SHARED_CHUNK if decoding else self._batch))
        chunks = [(s, n) for (s, _), n in zip(prompts, shares, strict=True) if n]
        apart = [s.lane for s, _ in chunks if self._is_read_apart(main, s)]
        reading = [_add_chunk(main, s, n) for s, n in chunks if s.lane not in apart]
        main.decode()
        emitted = [
            self._verify(main, sequence, proposal, first, looked_up=round_.looked_up(seat))
            for seat, (sequence, proposal, first) in enumerate(zip(decoding, proposals, verifying, strict=True))
        ]
        for sequence, last in reading:
            if last is not None:
                sequence.begin(*sequence.outputs(main.context, last))
            elif main.length(sequence.lane) == sequence.rest:
                main.remember(sequence.lane)
        self._read_again(main, decoding)
        if decoding:
            # A batch that also read prompts says nothing about what verifying costs.
            verify_s = 0.0 if prompts else time.perf_counter() - drafted
            round_.settle(emitted, drafted - started, verify_s)
        for sequence, count in chunks:
            if sequence.lane in apart:
                self._read_apart(main, sequence, count)

    def close(self, generation: Generation) -> None:
        assert isinstance(generation, _Sequence)
        generation.sampler.close()
        if self._reader is not None and self._reader.reads(generation.lane):
            self._reader.stop()
        self._loaded().release(generation.lane)

    def embed(self, inputs: Sequence[str]) -> tuple[list[list[float]], int]:
        if self._embedder is None:
            if self._main is None:
                raise Fault("not_loaded", "no model is loaded")
            raise Fault("unsupported", "the loaded model generates text; load an embedding model")
        return self._embedder.embed(inputs)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return self._vocabulary().tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        model = self._vocabulary()
        check_tokens(tokens, model.n_vocab, "tokens")
        return b"".join(model.spell(token, special=True) for token in tokens)

    # --- opening ---------------------------------------------------------------------------------------------------

    def _lanes(self, model: binding.Model, request: LoadRequest, options: LoadOptions, *, outputs: int) -> Lanes:
        context = binding.Context(
            model,
            n_ctx=self._n_ctx * self.slots,
            n_seq=self.slots,
            n_batch=max(options.batch or _BATCH, outputs),
            n_outputs=outputs,
            threads=request.threads,
            options=options.context,
        )
        return Lanes(context, model, self.slots, outputs)

    def _loaded(self) -> Lanes:
        if self._main is None:
            if self._embedder is not None:
                raise Fault("unsupported", "the loaded model makes embeddings and generates no text")
            raise Fault("not_loaded", "no model is loaded")
        return self._main

    def _vocabulary(self) -> binding.Model:
        return self._loaded().model if self._embedder is None else self._embedder.model

    # --- one step --------------------------------------------------------------------------------------------------

    def _lag(self, main: Lanes, sequence: _Sequence) -> int:
        """How many of a sequence's tokens have no state yet."""
        reader = self._reader
        if reader is not None and reader.reads(sequence.lane):
            return len(sequence.tokens) - reader.done
        return len(sequence.tokens) - main.length(sequence.lane)

    def _is_read_apart(self, main: Lanes, sequence: _Sequence) -> bool:
        """Whether the next part of a prompt is the reader's, also if it has to wait for the prompt before it."""
        held = main.length(sequence.lane)
        reader = self._reader
        if reader is None or not reader.takes(sequence.tokens, held):
            return False
        return not main.context.is_changing

    def _read_apart(self, main: Lanes, sequence: _Sequence, count: int) -> None:
        reader = self._reader
        assert reader is not None
        held = main.length(sequence.lane)
        if not reader.reads(sequence.lane) and not reader.begin(sequence.lane, sequence.tokens, held):
            return
        if reader.read(sequence.tokens, count):
            main.hold(sequence.lane, sequence.tokens[: reader.done])
        sequence.prompt_done = max(sequence.prompt_done, min(reader.done, sequence.prompt_tokens))

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
        """Commit what the main model says from index `first` of the batch on, and take the rest out of the caches."""
        base = len(sequence.tokens)
        emitted, accepted = sequence.verify(proposal, *sequence.outputs(main.context, first), looked_up=looked_up)
        main.truncate(sequence.lane, base + accepted)
        if self._draft is not None and sequence.draft_vocabulary is not None:
            self._draft.truncate(sequence.lane, base + sequence.agreed(emitted))
        return emitted

    def _read_again(self, main: Lanes, sequences: Sequence[_Sequence]) -> None:
        """Where a state had to go back further than the draft was wrong, read what was right once more."""
        main.begin()
        for sequence in sequences:
            behind = len(sequence.tokens) - 1 - main.length(sequence.lane)
            if sequence.output.stop_reason is None and 0 < behind <= main.left:
                main.add(sequence.lane, sequence.tokens[-1 - behind : -1], outputs=0)
        main.decode()

    # --- drafting --------------------------------------------------------------------------------------------------

    def _plan(self, sequences: Sequence[_Sequence], room: int) -> Round:
        """What the controller makes of this step, in which each can verify so many drafted tokens."""
        seats: list[tuple[Stream, int, int]] = []
        for sequence in sequences:
            sequence.drafted, lag = [], 0
            if self._draft is not None and sequence.draft_vocabulary is not None:
                sequence.unread = self._draft.missing(sequence.lane, sequence.tokens)
                lag = len(sequence.unread)
            seats.append((sequence.stream, min(room, sequence.room), lag))
        return self._controller.plan(seats)

    def _run_draft(self, round_: Round, sequences: Sequence[_Sequence]) -> None:
        """Continue greedily every sequence that is worth it, all in one batch a token."""
        draft, n_vocab = self._draft, self._loaded().model.n_vocab
        rested = False
        while draft is not None and (wanting := round_.wanting()):
            if not (rested or draft.model.can_roll_back):
                self._rest(draft, [sequences[seat] for seat in wanting])
                rested = True
            draft.begin()
            rows = {}
            for seat in wanting:
                sequence = sequences[seat]
                if self._catches_up(draft, sequence):
                    round_.stop(seat)
                else:
                    rows[seat] = draft.add(sequence.lane, sequence.unread, outputs=1)
            draft.decode()
            for seat, row in rows.items():
                sequence = sequences[seat]
                logits = draft.context.logits(row)
                token = int(np.argmax(logits))
                if token >= n_vocab:
                    round_.stop(seat)
                    continue
                sequence.drafted.append(token)
                sequence.unread = [token]
                round_.offer(token, _top_probability(logits, token), seat)
                if draft.model.ends(token):
                    round_.stop(seat)

    def _rest(self, draft: Lanes, sequences: Sequence[_Sequence]) -> None:
        """Have the draft read what is committed but for the last token, so that it can go back to there."""
        draft.begin()
        for sequence in sequences:
            if 1 < len(sequence.unread) <= min(_SHARED_CHUNK, draft.left):
                draft.add(sequence.lane, sequence.unread[:-1], outputs=0)
                sequence.unread = sequence.unread[-1:]
        draft.decode()
        for sequence in sequences:
            if len(sequence.unread) == 1:
                draft.mark(sequence.lane)

    def _catches_up(self, draft: Lanes, sequence: _Sequence) -> bool:
        """Far behind, on a long prompt, the draft reads a chunk a step and the others go on. True while it does."""
        room = min(_SHARED_CHUNK, draft.left - self.slots)
        if len(sequence.unread) <= room:
            return False
        if room > 0:
            draft.add(sequence.lane, sequence.unread[:room], outputs=0)
        return True


@dataclass
class _Sequence(Decoding):
    lane: int = field(kw_only=True)
    sampler: Sampler = field(kw_only=True)
    rest: int | None = None
    """After how many tokens of the prompt the state is remembered."""
    unread: Sequence[int] = ()
    """What the draft is to read next."""

    def outputs(
        self, context: binding.Context, first: int
    ) -> tuple[Callable[[int], int], Callable[[int], binding.Logits]]:
        """What gives the main model's tokens, and its logits, from index `first` of the last batch on."""
        return (lambda i: self.sampler.sample(context, first + i), lambda i: context.logits(first + i))


def _add_chunk(main: Lanes, sequence: _Sequence, count: int) -> tuple[_Sequence, int | None]:
    """Put the next tokens of a prompt into the batch; the index of its logits if they are the last."""
    start = main.length(sequence.lane)
    end = start + count
    if sequence.rest is not None and start < sequence.rest < end:
        end = sequence.rest
    sequence.prompt_done = max(sequence.prompt_done, min(end, sequence.prompt_tokens))
    last = end == len(sequence.tokens)
    index = main.add(sequence.lane, sequence.tokens[start:end], outputs=1 if last else 0)
    return sequence, index if last else None


def _top_probability(logits: binding.Logits, top: int) -> float:
    """The softmax probability of the likeliest token."""
    return float(1.0 / np.exp(logits - logits[top]).sum())
