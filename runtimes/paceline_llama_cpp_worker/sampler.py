"""The request's sampler chain on the main model, in llama.cpp's order, kept to a grammar if there is one.

logit bias, penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature, then one draw; temperature 0 takes the
likeliest token after bias, penalties and DRY. What is drawn for a token depends on the tokens before it and on nothing
else: chains advance by emitted tokens only, which are sampled in order however many positions were verified together.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp as ll

from paceline_llama_cpp_worker.binding import Context
from paceline_worker import primitives

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline_llama_cpp_worker.binding import Logits, Model
    from paceline_worker.grammar import Matcher, TokenIds
    from paceline_worker.request import GenerateRequest, Sampling

Vector = np.ndarray[Any, np.dtype[Any]]

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`llama_token_data`."""

_KEPT_DRY = 4

_RANDOM_SEED = 0xFFFFFFFF
"""`LLAMA_DEFAULT_SEED`, for which llama.cpp draws a seed of its own."""

_UNDERFLOW = 1e-30
"""Relative probability below which typical sampling must see no token: its entropy of one that underflows is NaN."""


class Samplers(primitives.Samplers[Context]):
    """Makes the samplers of one model; keeps what is dear to make, DRY's reading of its vocabulary."""

    def __init__(self, model: Model, n_ctx: int) -> None:
        self._model = model
        self._n_ctx = n_ctx
        self._dry: OrderedDict[tuple[object, ...], Any] = OrderedDict()

    def open(self, request: GenerateRequest, history: Sequence[int], grammar: Matcher | None) -> Sampler:
        """`history`: the prompt, which penalties and DRY look at."""
        return Sampler(self._chain(request.sampling, history), grammar, self._model.n_vocab)

    def close(self) -> None:
        while self._dry:
            ll.llama_sampler_free(self._dry.popitem()[1])

    def _chain(self, sampling: Sampling, history: Sequence[int]) -> Any:
        """llama.cpp's chain; None where it would only take the likeliest token."""
        greedy = sampling.temperature <= 0
        n_vocab = self._model.n_vocab
        bias = [(token, value) for token, value in sampling.logit_bias if 0 <= token < n_vocab]
        if greedy and not (bias or sampling.penalizes or sampling.dries):
            return None
        seed = 0 if sampling.seed == _RANDOM_SEED else sampling.seed
        chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())

        def add(sampler: Any) -> None:
            ll.llama_sampler_chain_add(chain, sampler)

        if bias:
            entries = (ll.llama_logit_bias * len(bias))(*bias)
            add(ll.llama_sampler_init_logit_bias(n_vocab, len(bias), entries))
        if sampling.penalizes:
            window = self._window(sampling.repeat_last_n)
            penalties = ll.llama_sampler_init_penalties(
                n_vocab, window, sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
            )
            add(_after(penalties, history, window))
        if sampling.dries:
            window = self._window(sampling.dry_penalty_last_n)
            add(_after(ll.llama_sampler_clone(self._dry_sampler(sampling, window)), history, window))
        if greedy:
            add(ll.llama_sampler_init_greedy())
            return chain
        if sampling.top_k > 0:
            add(ll.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            add(ll.llama_sampler_init_min_p(_UNDERFLOW, 1))
            add(ll.llama_sampler_init_typical(sampling.typical_p, 1))
        if sampling.top_p < 1:
            add(ll.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0:
            add(ll.llama_sampler_init_min_p(sampling.min_p, 1))
        if sampling.xtc_probability > 0:
            add(ll.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed))
        add(ll.llama_sampler_init_temp(sampling.temperature))
        add(ll.llama_sampler_init_dist(seed))
        return chain

    def _window(self, last_n: int) -> int:
        """How many tokens back is looked; -1 means all of the context."""
        return min(self._n_ctx, last_n) if last_n >= 0 else self._n_ctx

    def _dry_sampler(self, sampling: Sampling, window: int) -> Any:
        """A fresh DRY sampler to clone. Making one spells the whole vocabulary for each sequence breaker."""
        breakers = [breaker.encode("utf-8", errors="replace") for breaker in sampling.dry_sequence_breakers]
        settings = (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length, window)
        key = (settings, *breakers)
        sampler = self._dry.pop(key, None)
        if sampler is None:
            strings = (ctypes.c_char_p * len(breakers))(*breakers)
            sampler = ll.llama_sampler_init_dry(self._model.vocab, *settings, strings, len(breakers))
        self._dry[key] = sampler
        if len(self._dry) > _KEPT_DRY:
            ll.llama_sampler_free(self._dry.popitem(last=False)[1])
        return sampler


class Sampler(primitives.Sampler[Context]):
    """Samples and remembers what it sampled. Close it when the generation ends."""

    def __init__(self, chain: Any, grammar: Matcher | None, n_vocab: int) -> None:
        """`grammar` is asked here and advanced by who commits the token."""
        self.grammar = grammar
        self._chain = chain
        if grammar is not None and chain is not None:
            self._ids: Vector = np.arange(n_vocab, dtype=np.int32)
            self._candidates: Vector = np.zeros(n_vocab, dtype=_CANDIDATE)

    def sample(self, context: Context, index: int) -> int:
        """The main model's token at one position of the last batch. Positions are sampled in order.

        Raises Fault when the grammar allows none.
        """
        if self.grammar is not None:
            return self._sample_allowed(context.logits(index), self.grammar)
        if self._chain is None:
            return context.likeliest(index)
        return int(ll.llama_sampler_sample(self._chain, context.handle, index))

    def close(self) -> None:
        if self._chain is not None:
            ll.llama_sampler_free(self._chain)
            self._chain = None

    def _sample_allowed(self, logits: Logits, grammar: Matcher) -> int:
        token = self._choose(logits, None)
        if not grammar.allows(token):
            token = self._choose(logits, grammar.allowed())
        if self._chain is not None:
            ll.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, logits: Logits, tokens: TokenIds | None) -> int:
        """What the chain chooses, of all tokens or of these; it does not advance."""
        if self._chain is None:
            return int(logits.argmax() if tokens is None else tokens[logits[tokens].argmax()])
        candidates = self._candidates[: len(logits) if tokens is None else len(tokens)]
        candidates["id"] = self._ids if tokens is None else tokens
        candidates["logit"] = logits if tokens is None else logits[tokens]
        data = candidates.ctypes.data_as(ll.llama_token_data_p)
        array = ll.llama_token_data_array(data, len(candidates), -1, False)
        ll.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(array.data[array.selected].id)


def _after(sampler: Any, history: Sequence[int], window: int) -> Any:
    """The sampler, told the tokens before the output as far as it looks back."""
    for token in history[max(0, len(history) - window) :]:
        ll.llama_sampler_accept(sampler, token)
    return sampler
