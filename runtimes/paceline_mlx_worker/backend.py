"""Speculative decoding over mlx-lm's models and caches, one generation at a time.

A step computes the last committed token and the draft's proposal in one forward pass of the main model, samples every
position with the request's own chain, keeps what agrees, and takes the rest back out of both caches. What the draft
computed for accepted tokens stays in its cache: no token is computed twice on the draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline_mlx_worker import binding
from paceline_mlx_worker.sampler import Sampler
from paceline_worker.backend import Backend, Generation, LoadRequest
from paceline_worker.output import Output
from paceline_worker.protocol import Fault
from paceline_worker.request import DraftKnobs, GenerateRequest
from paceline_worker.speculation import Acceptance, draft_limit, keeps_drafting, worth_verifying

_DEFAULT_CONTEXT = 4096

_CANNOT_FORGET = "the context has outgrown the model's sliding window, so rejected tokens could not be taken back"


class MlxBackend(Backend):
    engine = "mlx"
    version = binding.VERSION
    features = ("generate", "draft", "tokenize")
    slots = 1

    def __init__(self) -> None:
        binding.start()
        self._main: _Loaded | None = None
        self._draft: _Loaded | None = None

    def devices(self) -> list[dict[str, Any]]:
        return binding.devices()

    def load(self, role: str, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        if role == "draft" and self._main is None:
            raise Fault("not_loaded", "a draft is loaded after its main model")
        self.unload(role)
        model = binding.Model(request.path, progress=progress)
        if role == "main":
            n_ctx = request.context_length or min(model.n_ctx_train or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
            self._main = loaded = _Loaded(model, n_ctx=n_ctx)
        else:
            assert self._main is not None
            if not (model.can_roll_back and self._main.model.can_roll_back):
                model.close()
                raise Fault("unsupported", "a recurrent model's state cannot be rolled back: no draft is possible")
            self._draft = loaded = _Loaded(model, n_ctx=self._main.n_ctx)
        return {"context_length": loaded.n_ctx, "vocabulary": model.n_vocab}

    def unload(self, role: str) -> None:
        if self._draft is not None:
            self._draft.close()
            self._draft = None
        if role == "main" and self._main is not None:
            self._main.close()
            self._main = None

    def open(self, request: GenerateRequest) -> Generation:
        main = self._loaded()
        tokens = self._prompt(main, request)
        room = main.n_ctx - len(tokens)
        if room < 1:
            raise Fault(
                "context_exceeded",
                f"the prompt has {len(tokens)} tokens; the context of {main.n_ctx} has no room for an answer",
                prompt_tokens=len(tokens),
                context_length=main.n_ctx,
            )
        cached = main.reuse(tokens)
        generation = _Sequence(
            request=request,
            output=Output(max_tokens=request.max_tokens, context_room=room, stop=request.stop),
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            prompt_done=cached,
            tokens=tokens,
            sampler=Sampler(request.sampling, main.model.n_vocab, main.n_ctx, tokens),
        )
        if request.draft is not None:
            self._attach_draft(generation)
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
        for token in tokens:
            _check_token(token, model.n_vocab, "tokens")
        return b"".join(model.spell(token, special=True) for token in tokens)

    # --- one generation --------------------------------------------------------------------------------------------

    def _loaded(self) -> _Loaded:
        if self._main is None:
            raise Fault("not_loaded", "no model is loaded")
        return self._main

    def _prompt(self, main: _Loaded, request: GenerateRequest) -> list[int]:
        if isinstance(request.prompt, str):
            tokens = main.model.tokenize(request.prompt, add_special=request.add_special)
            if len(tokens) > 1 and tokens[0] == tokens[1] == main.model.bos:
                del tokens[0]  # the template had written it already
        else:
            tokens = list(request.prompt)
            for token in tokens:
                _check_token(token, main.model.n_vocab, "prompt")
        if not tokens:
            raise Fault.invalid("prompt", "the prompt has no tokens")
        return tokens

    def _attach_draft(self, generation: _Sequence) -> None:
        """Let the loaded draft take part, or say why it cannot."""
        if self._draft is None:
            generation.draft_skipped = "no draft model is loaded"
        elif max(generation.tokens) >= self._draft.model.n_vocab:
            generation.draft_skipped = "the prompt holds tokens that the draft's smaller vocabulary lacks"
        elif not (self._loaded().could_take_back(generation.tokens) and self._draft.could_take_back(generation.tokens)):
            generation.draft_skipped = _CANNOT_FORGET
        else:
            generation.draft = self._draft
            generation.acceptance = Acceptance()
            self._draft.reuse(generation.tokens)

    def _prefill(self, generation: _Sequence) -> None:
        """Compute one chunk of the prompt; the last chunk gives the first token."""
        main = self._loaded()
        start = generation.prompt_done
        chunk = generation.tokens[start : start + binding.CHUNK]
        last = start + len(chunk) == generation.prompt_tokens
        main.extend(chunk, outputs=1 if last else 0)
        if generation.draft is not None and not last:
            generation.draft.extend(generation.tokens[len(generation.draft.tokens) : start + len(chunk)], outputs=0)
        generation.prompt_done += len(chunk)
        if last:
            self._commit(generation, generation.sampler.sample(main.context, 0), drafted=False)

    def _decode(self, generation: _Sequence) -> None:
        main = self._loaded()
        base = len(generation.tokens)
        proposal = self._propose(generation)
        main.extend([*generation.tokens[len(main.tokens) :], *proposal], outputs=1 + len(proposal))
        accepted = 0
        for position in range(len(proposal) + 1):
            token = generation.sampler.sample(main.context, position)
            agreed = position < len(proposal) and token == proposal[position]
            accepted += agreed
            if self._commit(generation, token, drafted=agreed) or not agreed:
                break
        main.truncate(base + accepted)
        if generation.acceptance is not None:
            ended = generation.output.stop_reason is not None and accepted == len(generation.tokens) - base
            generation.acceptance.verified(len(proposal), accepted, ended=ended)
        if generation.draft is not None:
            generation.draft.truncate(min(len(generation.draft.tokens), base + accepted))

    def _commit(self, generation: _Sequence, token: int, *, drafted: bool) -> bool:
        """Append one token of the main model's choice. True when the output is over."""
        model = self._loaded().model
        generation.tokens.append(token)
        if generation.draft is not None and token >= generation.draft.model.n_vocab:
            generation.draft = None
            generation.draft_skipped = "the output holds a token that the draft's smaller vocabulary lacks"
        end = not generation.request.ignore_eos and model.ends(token)
        return generation.output.push(token, model.piece(token), drafted=drafted, end=end)

    def _propose(self, generation: _Sequence) -> list[int]:
        """What the draft thinks comes next: tokens worth verifying, possibly none."""
        draft, knobs = generation.draft, generation.request.draft
        if draft is None or knobs is None or generation.acceptance is None:
            return []
        # The step commits one token more than it drafts, and needs a place in the context for each.
        limit = draft_limit(knobs, generation.output.left - 1)
        main = self._loaded()
        if not (main.could_take_back(generation.tokens, limit) and draft.could_take_back(generation.tokens, limit)):
            generation.draft, generation.draft_skipped = None, _CANNOT_FORGET
            return []
        proposal = draft.run(generation.tokens, limit, knobs, main.model.n_vocab) if limit else []
        if not worth_verifying(knobs, len(proposal)):
            generation.acceptance.unverified(len(proposal))
            return []
        return proposal


@dataclass
class _Sequence(Generation):
    tokens: list[int] = field(default_factory=list)
    """Prompt and output; all but the last are in the main model's cache while decoding."""
    sampler: Sampler = field(kw_only=True)
    draft: _Loaded | None = None


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

    def could_take_back(self, tokens: Sequence[int], more: int = 0) -> bool:
        """Whether the last of `tokens` and `more` others could be forgotten again, once they are computed."""
        return self.context.could_take_back(len(tokens) + more - len(self.tokens))

    def run(self, tokens: Sequence[int], limit: int, knobs: DraftKnobs, n_vocab: int) -> list[int]:
        """Continue `tokens` greedily by at most `limit` tokens below `n_vocab`, as far as the knobs allow."""
        missing = tokens[len(self.tokens) :]
        proposal: list[int] = []
        while True:
            self.extend(missing, outputs=1)
            token, probability = self.context.likeliest_with_probability()
            if token >= n_vocab or not keeps_drafting(knobs, probability):
                return proposal
            proposal.append(token)
            if len(proposal) == limit or self.model.ends(token):
                return proposal
            missing = [token]

    def close(self) -> None:
        self.context.close()
        self.model.close()


def _check_token(token: int, n_vocab: int, param: str) -> None:
    if not 0 <= token < n_vocab:
        raise Fault.invalid(param, f"token {token} is outside the vocabulary of {n_vocab}")
