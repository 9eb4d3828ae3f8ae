"""The MLX worker's sampler against a literal, slow reading of llama.cpp's chain."""

import math
import random
from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_mlx_worker.sampler import Sampler
from paceline_worker.request import Sampling

VOCABULARY = 3000


def rows(seed, count=12, spread=3.0):
    """Logits of some positions, in steps of 1/64 as half precision has them, so that there are equals."""
    values = np.random.default_rng(seed).normal(0, spread, (count, VOCABULARY))
    return (np.round(values * 64) / 64).astype(np.float32)


def literal(sampling, n_ctx, history, positions):
    """What the chain chooses, one loop per step of it."""
    rng, tokens = random.Random(sampling.seed), list(history)
    chosen = []
    for logits in positions:
        left = {token: float(value) for token, value in enumerate(logits)}
        for token, value in sampling.logit_bias:
            left[token] = float(np.float32(left[token]) + np.float32(value))
        window = n_ctx if sampling.repeat_last_n < 0 else min(n_ctx, sampling.repeat_last_n)
        if sampling.penalizes:
            for token, count in Counter(tokens[max(0, len(tokens) - window) :]).items():
                value = left[token]
                value = value * sampling.repeat_penalty if value <= 0 else value / sampling.repeat_penalty
                left[token] = value - count * sampling.frequency_penalty - sampling.presence_penalty
        if sampling.temperature <= 0:
            token = max(left, key=lambda t: (left[t], -t))
        else:
            ordered = sorted(left, key=lambda t: (-left[t], t))
            if sampling.top_k > 0:
                ordered = ordered[: sampling.top_k]
            if sampling.top_p < 1:
                weights = [math.exp(left[t] - left[ordered[0]]) for t in ordered]
                kept, mass = 0, 0.0
                while kept == 0 or (mass < sampling.top_p * sum(weights) and kept < len(ordered)):
                    mass += weights[kept]
                    kept += 1
                ordered = ordered[:kept]
            elif sampling.top_k == 0:
                ordered = sorted(ordered)
            likeliest = max(left[t] for t in ordered)
            if sampling.min_p > 0:
                ordered = [t for t in ordered if left[t] >= likeliest + math.log(sampling.min_p)]
            weights = [math.exp((left[t] - likeliest) / sampling.temperature) for t in ordered]
            at = rng.random() * sum(weights)
            token = next(t for t, reached in zip(ordered, accumulate(weights), strict=True) if reached > at)
        tokens.append(token)
        chosen.append(token)
    return chosen


def chosen(sampling, n_ctx, history, positions):
    sampler = Sampler(sampling, VOCABULARY, n_ctx, history)
    return [sampler.choose(logits) for logits in positions]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.2},
        {"temperature": 2.0, "top_k": 0, "top_p": 0.5, "min_p": 0.0},
        {"temperature": 2.0, "top_k": 0, "top_p": 0.999, "min_p": 0.0},
        {"temperature": 1.0, "top_k": 7, "top_p": 0.6, "min_p": 0.1},
        {"temperature": 1.0, "top_k": VOCABULARY + 5, "top_p": 0.0, "min_p": 0.0},
        {"temperature": 0.0, "logit_bias": ((3, 100.0), (5, -100.0))},
        {"temperature": 0.0, "repeat_penalty": 1.5, "repeat_last_n": 4},
        {"temperature": 0.9, "repeat_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.25},
        {"temperature": 0.9, "frequency_penalty": -3.0, "repeat_last_n": -1, "logit_bias": ((9, 4.0),)},
        {"temperature": 0.0, "presence_penalty": 50.0, "repeat_last_n": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1, 4_000_000_000])
def test_the_choice_is_that_of_the_literal_chain(fields, seed):
    sampling = Sampling(**fields, seed=seed)
    history = [3, 9, 9, 11] * 5
    positions = np.repeat(rows(seed % 7, 6), 3, axis=0)
    assert chosen(sampling, 16, history, positions) == literal(sampling, 16, history, positions)


def test_the_logits_are_left_as_they_are():
    logits = rows(1, 1)[0]
    before = logits.copy()
    chosen(Sampling(repeat_penalty=2.0, logit_bias=((1, 5.0),)), 100, range(50), [logits])
    assert (logits == before).all()


def test_a_bias_outside_the_vocabulary_is_no_error():
    assert chosen(Sampling(temperature=0.0, logit_bias=((-1, 9.0), (VOCABULARY, 9.0))), 100, [1], rows(2, 2)) == [
        int(row.argmax()) for row in rows(2, 2)
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-300, 5.0), st.integers(0, 60), st.floats(0, 1), st.floats(0, 1))
def test_a_seed_decides_everything(seed, temperature, top_k, top_p, min_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    once, again = (chosen(sampling, 64, [1, 2], rows(3, 4)) for _ in range(2))
    assert once == again
    assert all(0 <= token < VOCABULARY for token in once)


def test_the_frequencies_are_the_softmax():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=5), 4, 64, [0])
    counts = Counter(sampler.choose(logits) for _ in range(20_000))
    for token, share in enumerate((0.5, 0.3, 0.15, 0.05)):
        assert counts[token] / 20_000 == pytest.approx(share, abs=0.015)
