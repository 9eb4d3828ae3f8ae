"""Speculative decoding over mlx-lm's models and caches, one generation at a time.

A step computes the last committed token and what the draft model or prompt lookup proposes in one forward pass of the
main model, samples every position with the request's own chain, keeps what agrees, and takes the rest back out of both
caches. What the draft computed for accepted tokens stays in its cache: no token is computed twice on the draft.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline_mlx_worker import binding
from paceline_mlx_worker.sampler import Sampler
from paceline_worker.backend import Backend, Generation, LoadRequest
from paceline_worker.decoding import Decoding, check_tokens, read_prompt
from paceline_worker.options import Options
from paceline_worker.protocol import Fault
from paceline_worker.request import GenerateRequest
from paceline_worker.speculation import Controller, Round

_DEFAULT_CONTEXT = 4096

_CANNOT_ROLL_BACK = "a recurrent model's state cannot be rolled back: no draft is possible"
_CANNOT_FORGET = "the context has outgrown the model's sliding window, so rejected tokens could not be taken back"


class MlxBackend(Backend):
    engine = "mlx"
    version = binding.VERSION
    features = ("generate", "draft", "lookup", "tokenize")
    load_options = ("embedding",)
    slots = 1

    def __init__(self) -> None:
        binding.start()
        self._main: _Loaded | None = None
        self._draft: _Loaded | None = None
        self._controller = Controller()

    def devices(self) -> list[dict[str, Any]]:
        return binding.devices()

    def load(self, role: str, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        if role == "draft" and self._main is None:
            raise Fault("not_loaded", "a draft is loaded after its main model")
        Options(request.options, self.load_options, "mlx")
        self.unload(role)
        model = binding.Model(request.path, progress=progress)
        if role == "main":
            n_ctx = request.context_length or min(model.n_ctx_train or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
            self._main = loaded = _Loaded(model, n_ctx=n_ctx)
        else:
            assert self._main is not None
            if not (model.can_roll_back and self._main.model.can_roll_back):
                model.close()
                raise Fault("unsupported", _CANNOT_ROLL_BACK)
            self._draft = loaded = _Loaded(model, n_ctx=self._main.n_ctx)
        return {"context_length": loaded.n_ctx, "vocabulary": model.n_vocab}

    def unload(self, role: str) -> None:
        if self._draft is not None:
            self._draft.close()
            self._draft = None
            self._controller = Controller(self._controller.costs)
        if role == "main" and self._main is not None:
            self._main.close()
            self._main = None
            self._controller = Controller()

    def open(self, request: GenerateRequest) -> Generation:
        main = self._loaded()
        tokens, output = read_prompt(request, main.model, main.n_ctx)
        cached = main.reuse(tokens)
        generation = _Sequence(
            request=request,
            output=output,
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            prompt_done=cached,
            vocabulary=main.model,
            tokens=tokens,
            sampler=Sampler(request.sampling, main.model.n_vocab, main.n_ctx, tokens),
        )
        draft = self._draft
        generation.invite(
            self._controller,
            draft_vocabulary=None if draft is None else draft.model.n_vocab,
            obstacle=main.obstacle(tokens),
            draft_obstacle=None if draft is None else draft.obstacle(tokens),
        )
        if draft is not None and generation.draft_vocabulary is not None:
            draft.reuse(tokens)
        return generation

    def step(self, generations: Sequence[Generation]) -> None:
        for generation in generations:
            assert isinstance(generation, _Sequence)
            if generation.prompt_done < generation.prompt_tokens:
                self._prefill(generation)
            else:
                self._decode(generation)

    def close(self, generation: Generation) -> None:
        """Nothing is held for a generation but the caches, which stay for the next prompt."""

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return self._loaded().model.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        model = self._loaded().model
        check_tokens(tokens, model.n_vocab, "tokens")
        return b"".join(model.spell(token, special=True) for token in tokens)

    # --- one generation --------------------------------------------------------------------------------------------

    def _loaded(self) -> _Loaded:
        if self._main is None:
            raise Fault("not_loaded", "no model is loaded")
        return self._main

    def _prefill(self, generation: _Sequence) -> None:
        """Compute one chunk of the prompt; the last chunk gives the first token."""
        main = self._loaded()
        start = generation.prompt_done
        chunk = generation.tokens[start : start + binding.CHUNK]
        last = start + len(chunk) == generation.prompt_tokens
        main.extend(chunk, outputs=1 if last else 0)
        draft = self._draft
        if draft is not None and generation.draft_vocabulary is not None and not last:
            draft.extend(generation.tokens[len(draft.tokens) : start + len(chunk)], outputs=0)
        generation.prompt_done += len(chunk)
        if last:
            generation.commit(generation.sampler.sample(main.context, 0), drafted=False)

    def _decode(self, generation: _Sequence) -> None:
        main, draft = self._loaded(), self._draft
        base = len(generation.tokens)
        round_ = self._plan(generation)
        started = time.perf_counter()
        if draft is not None and round_.wants():
            self._run_draft(round_, generation, draft)
        (proposal,) = round_.proposals()
        drafted = time.perf_counter()
        main.extend([*generation.tokens[len(main.tokens) :], *proposal], outputs=1 + len(proposal))
        emitted, accepted = generation.verify(
            proposal, lambda i: generation.sampler.sample(main.context, i), looked_up=round_.looked_up()
        )
        round_.settle([emitted], drafted - started, time.perf_counter() - drafted)
        main.truncate(base + accepted)
        if draft is not None and generation.draft_vocabulary is not None:
            draft.truncate(base + generation.agreed(emitted))

    def _plan(self, generation: _Sequence) -> Round:
        """What the controller makes of this step."""
        generation.drafted, lag = [], 0
        draft, tokens, knobs = self._draft, generation.tokens, generation.stream.knobs
        room = min(generation.room, knobs.exact_tokens or knobs.max_tokens)
        if room and (obstacle := self._loaded().obstacle(tokens, room)):
            generation.leave_draft(obstacle, lookup=True)
            room = 0
        elif draft is not None and generation.draft_vocabulary is not None:
            lag = len(tokens) - len(draft.tokens)
            if obstacle := draft.obstacle(tokens, room):
                generation.leave_draft(obstacle)
        return self._controller.plan([(generation.stream, room, lag)])

    def _run_draft(self, round_: Round, generation: _Sequence, draft: _Loaded) -> None:
        """Continue greedily as far as it is worth it."""
        n_vocab = self._loaded().model.n_vocab
        unread: Sequence[int] = generation.tokens[len(draft.tokens) :]
        wanted = round_.wants()
        while wanted:
            draft.extend(unread, outputs=1)
            token, probability = draft.context.likeliest_with_probability()
            if token >= n_vocab:
                return
            generation.drafted.append(token)
            unread = [token]
            wanted = round_.offer(token, probability) and not draft.model.ends(token)


@dataclass
class _Sequence(Decoding):
    sampler: Sampler = field(kw_only=True)


class _Loaded:
    """A model with its context and the tokens whose state the context holds."""

    def __init__(self, model: binding.Model, *, n_ctx: int) -> None:
        self.model = model
        self.n_ctx = n_ctx
        self.context = binding.Context(model)
        self.tokens: list[int] = []

    def reuse(self, tokens: Sequence[int]) -> int:
        """Keep the longest common beginning with `tokens`, all but the last of them at most; returns its length."""
        common = 0
        for have, want in zip(self.tokens, tokens[:-1], strict=False):
            if have != want:
                break
            common += 1
        self.truncate(common)
        return len(self.tokens)

    def extend(self, tokens: Sequence[int], *, outputs: int) -> None:
        self.context.decode(tokens, outputs=outputs)
        self.tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        """Forget what follows the first `length` tokens; a memory that cannot forget a part forgets all."""
        if length < len(self.tokens):
            if not self.context.keep(length):
                self.context.clear()
                length = 0
            del self.tokens[length:]

    def obstacle(self, tokens: Sequence[int], more: int = 0) -> str | None:
        """Why the last of `tokens` and `more` others could not be forgotten once they are computed, or None."""
        if not self.model.can_roll_back:
            return _CANNOT_ROLL_BACK
        if not self.context.could_take_back(len(tokens) + more - len(self.tokens)):
            return _CANNOT_FORGET
        return None

    def close(self) -> None:
        self.context.close()
        self.model.close()
