"""Speculative decoding over two llama.cpp contexts, several generations in one batch.

A step lets the draft propose for every generation together, then decodes in one batch of the main model each
generation's last token with its proposal, and chunks of the prompts that are not done yet. Every position is sampled
with its request's own chain; what agrees is kept and the rest taken back out of both caches. What the draft computed
for accepted tokens stays in its cache: no token is decoded twice on the draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paceline_llama_cpp_worker import binding
from paceline_llama_cpp_worker.lanes import Lanes
from paceline_llama_cpp_worker.sampler import Sampler
from paceline_worker.backend import Backend, Generation, LoadRequest
from paceline_worker.output import Output
from paceline_worker.protocol import Fault
from paceline_worker.request import MAX_DRAFT, GenerateRequest
from paceline_worker.speculation import Acceptance, draft_limit, keeps_drafting, worth_verifying

_BATCH = 512
"""Tokens computed in one step: the grain of progress and of cancelling."""

_SHARED_CHUNK = 128
"""Prompt tokens per step beside running generations, which wait no longer than these take."""

_DEFAULT_CONTEXT = 4096
_DEFAULT_SLOTS = 4
_DEFAULT_POOL = 16384
"""Tokens of context, over all slots, up to which more than one slot is made unasked."""

_DRAFT_PER_SLOT = 16


class LlamaBackend(Backend):
    engine = "llama.cpp"
    version = binding.VERSION
    features = ("generate", "draft", "tokenize")

    def __init__(self) -> None:
        binding.start()
        self.slots = 1
        self._n_ctx = 0
        self._main: Lanes | None = None
        self._draft: Lanes | None = None

    def devices(self) -> list[dict[str, Any]]:
        return binding.devices()

    def load(self, role: str, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        if role == "draft" and self._main is None:
            raise Fault("not_loaded", "a draft is loaded after its main model")
        self.unload(role)
        gpu_layers = _option(request, "gpu_layers", -1, least=-1)
        model = binding.Model(request.path, gpu_layers=gpu_layers, progress=progress)
        try:
            if not model.is_generative:
                raise Fault("load_failed", f"{request.path} is no model that generates text token by token")
            if role == "main":
                self._n_ctx = request.context_length or min(model.n_ctx_train, _DEFAULT_CONTEXT)
                unasked = max(1, min(_DEFAULT_SLOTS, _DEFAULT_POOL // self._n_ctx))
                self.slots = _option(request, "parallel", unasked, least=1, most=64)
                self._main = self._lanes(model, request, outputs=max(1 + MAX_DRAFT, self.slots * (1 + _DRAFT_PER_SLOT)))
            else:
                assert self._main is not None
                if not (model.can_roll_back and self._main.model.can_roll_back):
                    raise Fault("unsupported", "a recurrent model's state cannot be rolled back: no draft is possible")
                self._draft = self._lanes(model, request, outputs=self.slots)
        except BaseException:
            model.close()
            raise
        return {"context_length": self._n_ctx, "vocabulary": model.n_vocab, "slots": self.slots}

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
        room = self._n_ctx - len(tokens)
        if room < 1:
            raise Fault(
                "context_exceeded",
                f"the prompt has {len(tokens)} tokens; the context of {self._n_ctx} has no room for an answer",
                prompt_tokens=len(tokens),
                context_length=self._n_ctx,
            )
        lane, cached = main.take(tokens)
        generation = _Sequence(
            request=request,
            output=Output(max_tokens=request.max_tokens, context_room=room, stop=request.stop),
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            prompt_done=cached,
            tokens=tokens,
            lane=lane,
            sampler=Sampler(request.sampling, main.model.n_vocab, self._n_ctx, tokens),
        )
        if request.draft is not None:
            self._attach_draft(generation)
        return generation

    def step(self, generations: Sequence[Generation]) -> None:
        main = self._loaded()
        sequences = [g for g in generations if isinstance(g, _Sequence)]
        decoding = [s for s in sequences if s.prompt_done == s.prompt_tokens]
        prompts = [s for s in sequences if s.prompt_done < s.prompt_tokens]
        self._propose(decoding, main.outputs - len(prompts))
        main.begin()
        verifying = [(s, main.add(s.lane, [s.tokens[-1], *s.proposal], outputs=1 + len(s.proposal))) for s in decoding]
        reading = [self._add_chunk(main, s, len(prompts), beside=bool(decoding)) for s in prompts]
        main.decode()
        for sequence, first in verifying:
            self._verify(main, sequence, first)
        for sequence, last in reading:
            if last is not None:
                self._commit(sequence, sequence.sampler.sample(main.context, last), drafted=False)

    def close(self, generation: Generation) -> None:
        assert isinstance(generation, _Sequence)
        generation.sampler.close()
        self._loaded().release(generation.lane)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        return self._loaded().model.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        model = self._loaded().model
        for token in tokens:
            _check_token(token, model.n_vocab, "tokens")
        return b"".join(model.spell(token, special=True) for token in tokens)

    # --- opening ---------------------------------------------------------------------------------------------------

    def _lanes(self, model: binding.Model, request: LoadRequest, *, outputs: int) -> Lanes:
        context = binding.Context(
            model,
            n_ctx=self._n_ctx * self.slots,
            n_seq=self.slots,
            n_batch=max(_BATCH, outputs),
            n_outputs=outputs,
            threads=request.threads,
            flash_attention=_flag(request, "flash_attention"),
        )
        return Lanes(context, self.slots, outputs)

    def _loaded(self) -> Lanes:
        if self._main is None:
            raise Fault("not_loaded", "no model is loaded")
        return self._main

    def _prompt(self, main: Lanes, request: GenerateRequest) -> list[int]:
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

    def _attach_draft(self, sequence: _Sequence) -> None:
        """Let the loaded draft take part, or say why it cannot."""
        if self._draft is None:
            sequence.draft_skipped = "no draft model is loaded"
        elif max(sequence.tokens) >= self._draft.model.n_vocab:
            sequence.draft_skipped = "the prompt holds tokens that the draft's smaller vocabulary lacks"
        else:
            sequence.draft = self._draft
            sequence.acceptance = Acceptance()
            self._draft.reuse(sequence.lane, sequence.tokens)

    # --- one step --------------------------------------------------------------------------------------------------

    def _add_chunk(
        self, main: Lanes, sequence: _Sequence, prompts: int, *, beside: bool
    ) -> tuple[_Sequence, int | None]:
        """Put the next part of a prompt into the batch; the index of its logits if it is the last."""
        room = min(main.left, max(1, (_SHARED_CHUNK if beside else _BATCH) // prompts))
        start = sequence.prompt_done
        chunk = sequence.tokens[start : min(start + room, sequence.prompt_tokens)]
        sequence.prompt_done += len(chunk)
        last = sequence.prompt_done == sequence.prompt_tokens
        index = main.add(sequence.lane, chunk, outputs=1 if last else 0)
        return sequence, index if last else None

    def _verify(self, main: Lanes, sequence: _Sequence, first: int) -> None:
        """Commit what the main model says from index `first` of the batch on, as far as the proposal agrees."""
        base, proposal = len(sequence.tokens), sequence.proposal
        accepted = 0
        for position in range(len(proposal) + 1):
            token = sequence.sampler.sample(main.context, first + position)
            agreed = position < len(proposal) and token == proposal[position]
            accepted += agreed
            if self._commit(sequence, token, drafted=agreed) or not agreed:
                break
        main.truncate(sequence.lane, base + accepted)
        if sequence.acceptance is not None:
            ended = sequence.output.stop_reason is not None and accepted == len(sequence.tokens) - base
            sequence.acceptance.verified(len(proposal), accepted, ended=ended)
        if sequence.draft is not None:
            sequence.draft.truncate(sequence.lane, base + accepted)

    def _commit(self, sequence: _Sequence, token: int, *, drafted: bool) -> bool:
        """Append one token of the main model's choice. True when the output is over."""
        model = self._loaded().model
        sequence.tokens.append(token)
        if sequence.draft is not None and token >= sequence.draft.model.n_vocab:
            sequence.draft = None
            sequence.draft_skipped = "the output holds a token that the draft's smaller vocabulary lacks"
        end = not sequence.request.ignore_eos and model.ends(token)
        return sequence.output.push(token, model.piece(token), drafted=drafted, end=end)

    # --- drafting --------------------------------------------------------------------------------------------------

    def _propose(self, sequences: Sequence[_Sequence], outputs: int) -> None:
        """Let the draft say what comes next for each; `outputs` tokens can be verified in all."""
        share = outputs // max(1, len(sequences)) - 1
        drafting: list[tuple[_Sequence, int]] = []
        for sequence in sequences:
            sequence.proposal = []
            knobs = sequence.request.draft
            if sequence.draft is not None and knobs is not None:
                # The step commits one token more than it drafts, and needs a place in the context for each.
                limit = draft_limit(knobs, min(share, sequence.output.left - 1))
                if limit > 0:
                    drafting.append((sequence, limit))
        if drafting and self._draft is not None:
            self._run_draft(self._draft, drafting)
        for sequence, _ in drafting:
            assert sequence.acceptance is not None
            assert sequence.request.draft is not None
            if not worth_verifying(sequence.request.draft, len(sequence.proposal)):
                sequence.acceptance.unverified(len(sequence.proposal))
                sequence.proposal = []

    def _run_draft(self, draft: Lanes, drafting: list[tuple[_Sequence, int]]) -> None:
        """Continue every sequence greedily by at most its limit, as its knobs allow; one batch per token."""
        n_vocab = self._loaded().model.n_vocab
        pending: list[tuple[_Sequence, int, Sequence[int]]] = [
            (s, limit, draft.missing(s.lane, s.tokens)) for s, limit in drafting
        ]
        if any(len(missing) > _SHARED_CHUNK for _, _, missing in pending):
            # Far behind, on a long prompt: catch up by a chunk a step and let everybody else go on without a draft.
            draft.begin()
            for sequence, _, missing in pending:
                chunk = missing[: min(len(missing) - 1, draft.left, _SHARED_CHUNK)]
                if chunk:
                    draft.add(sequence.lane, chunk, outputs=0)
            draft.decode()
            return
        while pending:
            draft.begin()
            rows = [draft.add(s.lane, missing, outputs=1) for s, _, missing in pending]
            draft.decode()
            going: list[tuple[_Sequence, int, Sequence[int]]] = []
            for (sequence, limit, _), row in zip(pending, rows, strict=True):
                knobs = sequence.request.draft
                assert knobs is not None
                logits = draft.context.logits(row)
                token = int(np.argmax(logits))
                if token >= n_vocab or not keeps_drafting(knobs, _top_probability(logits, token)):
                    continue
                sequence.proposal.append(token)
                if len(sequence.proposal) < limit and not draft.model.ends(token):
                    going.append((sequence, limit, [token]))
            pending = going


@dataclass
class _Sequence(Generation):
    tokens: list[int] = field(default_factory=list)
    """Prompt and output; all but the last are in the main model's cache while decoding."""
    lane: int = 0
    sampler: Sampler = field(kw_only=True)
    draft: Lanes | None = None
    proposal: list[int] = field(default_factory=list)


def _top_probability(logits: binding.Logits, top: int) -> float:
    """The softmax probability of the likeliest token."""
    return float(1.0 / np.exp(logits - logits[top]).sum())


def _check_token(token: int, n_vocab: int, param: str) -> None:
    if not 0 <= token < n_vocab:
        raise Fault.invalid(param, f"token {token} is outside the vocabulary of {n_vocab}")


def _flag(request: LoadRequest, name: str) -> bool | None:
    value = request.options.get(name)
    if value is not None and not isinstance(value, bool):
        raise Fault.invalid(f"options.{name}", f"{name} must be true or false, not {value!r}")
    return value


def _option(request: LoadRequest, name: str, default: int, *, least: int, most: int = 2**31 - 1) -> int:
    value = request.options.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise Fault.invalid(f"options.{name}", f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return value
