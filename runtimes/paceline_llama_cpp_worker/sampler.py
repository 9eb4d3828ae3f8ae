"""The request's sampler chain on the main model, in llama.cpp's order.

logit bias, penalties, top-k, top-p, min-p, temperature, then one draw; temperature 0 takes the likeliest token after
bias and penalties. One random number is drawn per emitted token, so the stream of draws is the same however many
positions were verified together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llama_cpp import llama_cpp as ll

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline_llama_cpp_worker.binding import Context
    from paceline_worker.request import Sampling


class Sampler:
    """Samples and remembers what it sampled. Close it when the generation ends."""

    def __init__(self, sampling: Sampling, n_vocab: int, n_ctx: int, history: Sequence[int]) -> None:
        """`history`: the prompt, which the penalties look at; a `repeat_last_n` of -1 means all of the context."""
        self._chain = None
        greedy = sampling.temperature <= 0
        if greedy and not sampling.penalizes and not sampling.logit_bias:
            return
        chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        bias = [(token, value) for token, value in sampling.logit_bias if 0 <= token < n_vocab]
        if bias:
            entries = (ll.llama_logit_bias * len(bias))(*bias)
            ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_logit_bias(n_vocab, len(bias), entries))
        if sampling.penalizes:
            window = min(n_ctx, sampling.repeat_last_n) if sampling.repeat_last_n >= 0 else n_ctx
            penalties = ll.llama_sampler_init_penalties(
                n_vocab, window, sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
            )
            for token in history[max(0, len(history) - window) :]:
                ll.llama_sampler_accept(penalties, token)
            ll.llama_sampler_chain_add(chain, penalties)
        if greedy:
            ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_greedy())
        else:
            if sampling.top_k > 0:
                ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1:
                ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0:
                ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_min_p(sampling.min_p, 1))
            ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_temp(sampling.temperature))
            ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_dist(sampling.seed))
        self._chain = chain

    def sample(self, context: Context, index: int) -> int:
        """The main model's token at one position of the last batch. Positions are sampled in order."""
        if self._chain is None:
            return int(np.argmax(context.logits(index)))
        return int(ll.llama_sampler_sample(self._chain, context.handle, index))

    def close(self) -> None:
        if self._chain is not None:
            ll.llama_sampler_free(self._chain)
            self._chain = None
