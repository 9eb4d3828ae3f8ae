"""The MLX worker's sampler against a literal, slow reading of llama.cpp's chain."""

import math
import random
from collections import Counter, defaultdict
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline_mlx_worker.dry import Breakers, Dry
from paceline_mlx_worker.sampler import Sampler
from paceline_worker.request import Sampling

VOCABULARY = 3000


def rows(seed, count=12, spread=3.0):
    """Logits of some positions, in steps of 1/64 as half precision has them, so that there are equals."""
    values = np.random.default_rng(seed).normal(0, spread, (count, VOCABULARY))
    return (np.round(values * 64) / 64).astype(np.float32)


def literal(sampling, n_ctx, history, positions, dry=None):
    """What the chain chooses, one loop per step of it; `dry` are the sequence breakers, as DRY has them."""
    rng, chance, tokens = random.Random(sampling.seed), random.Random(f"xtc {sampling.seed}"), list(history)
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
        if dry is not None:
            for token, amount in literal_dry(sampling, n_ctx, tokens, dry).items():
                left[token] = float(np.float32(left[token]) - np.float32(amount))
        if sampling.temperature <= 0:
            token = max(left, key=lambda t: (left[t], -t))
        else:
            ordered = sorted(left, key=lambda t: (-left[t], t))
            if sampling.top_k > 0:
                ordered = ordered[: sampling.top_k]
            if sampling.typical_p < 1:
                ordered = sorted(literal_typical(sampling.typical_p, ordered, left), key=lambda t: (-left[t], t))
            if sampling.top_p < 1:
                weights = [math.exp(left[t] - left[ordered[0]]) for t in ordered]
                kept, mass = 0, 0.0
                while kept == 0 or (mass < sampling.top_p * sum(weights) and kept < len(ordered)):
                    mass += weights[kept]
                    kept += 1
                ordered = ordered[:kept]
            elif sampling.top_k == 0 and sampling.typical_p >= 1:
                ordered = sorted(ordered)
            likeliest = max(left[t] for t in ordered)
            if sampling.min_p > 0:
                ordered = [t for t in ordered if left[t] >= likeliest + math.log(sampling.min_p)]
            excludes = sampling.xtc_probability > 0 and sampling.xtc_threshold <= 0.5 and len(ordered) > 1
            if excludes and chance.random() <= sampling.xtc_probability:
                ordered = literal_xtc(sampling.xtc_threshold, ordered, left)
                likeliest = max(left[t] for t in ordered)
            weights = [math.exp((left[t] - likeliest) / sampling.temperature) for t in ordered]
            at = rng.random() * sum(weights)
            token = next(t for t, reached in zip(ordered, accumulate(weights), strict=True) if reached > at)
        tokens.append(token)
        chosen.append(token)
    return chosen


def literal_typical(p, ordered, left):
    highest = left[ordered[0]]
    total = sum(math.exp(left[t] - highest) for t in ordered)
    chance = {t: math.exp(left[t] - highest) / total for t in ordered}
    surprise = {t: math.log(total) - (left[t] - highest) for t in ordered}
    mean = sum(chance[t] * surprise[t] for t in ordered)
    kept, mass = [], 0.0
    for t in sorted(ordered, key=lambda t: abs(surprise[t] - mean)):
        kept.append(t)
        mass += chance[t]
        if mass > p:
            break
    return kept


def literal_xtc(threshold, ordered, left):
    highest = max(left[t] for t in ordered)
    total = sum(math.exp(left[t] - highest) for t in ordered)
    top = [t for t in ordered if math.exp(left[t] - highest) / total >= threshold]
    if len(top) < 2:
        return ordered
    last = max(top, key=lambda t: (-left[t], t))
    return [t for t in ordered if t not in top or t == last]


def literal_dry(sampling, n_ctx, tokens, breakers):
    """What DRY takes from each token: every earlier place compared with the end, token by token."""
    window = n_ctx if sampling.dry_penalty_last_n < 0 else min(n_ctx, sampling.dry_penalty_last_n)
    recent = tokens[max(0, len(tokens) - window) :]
    limit = next((back for back, t in enumerate(reversed(recent)) if t in breakers), len(recent))
    if len(recent) <= sampling.dry_allowed_length or limit < sampling.dry_allowed_length:
        return {}
    longest = {}
    for end in range(len(recent) - 1):
        length = 0
        while length < limit and length <= end and recent[end - length] == recent[-1 - length]:
            length += 1
        if length >= sampling.dry_allowed_length:
            longest[recent[end + 1]] = max(longest.get(recent[end + 1], 0), length)
    return {
        t: sampling.dry_multiplier * sampling.dry_base ** (length - sampling.dry_allowed_length)
        for t, length in longest.items()
        if t not in breakers
    }


def chosen(sampling, n_ctx, history, positions, dry=None):
    tails = defaultdict(list, {token: [[]] for token in dry or ()})
    penalty = None if dry is None else Dry(sampling, n_ctx, history, tails)
    sampler = Sampler(sampling, VOCABULARY, n_ctx, history, dry=penalty)
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
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 0.3},
        {"temperature": 1.0, "top_k": 60, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.7},
        {"temperature": 1.0, "top_k": 0, "top_p": 0.5, "min_p": 0.0, "typical_p": 0.0},
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "xtc_probability": 1.0, "xtc_threshold": 0.001},
        {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "xtc_probability": 0.5, "xtc_threshold": 0.05},
        {"temperature": 1.0, "top_k": 5, "xtc_probability": 1.0, "xtc_threshold": 0.51},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1, 4_000_000_000])
def test_the_choice_is_that_of_the_literal_chain(fields, seed):
    sampling = Sampling(**fields, seed=seed)
    history = [3, 9, 9, 11] * 5
    positions = np.repeat(rows(seed % 7, 6), 3, axis=0)
    assert chosen(sampling, 16, history, positions) == literal(sampling, 16, history, positions)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "dry_allowed_length": 1, "dry_base": 1.0},
        {"temperature": 0.0, "dry_allowed_length": 0},
        {"temperature": 0.8, "dry_penalty_last_n": 6, "repeat_penalty": 1.1},
        {"temperature": 0.8, "dry_penalty_last_n": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("breakers", [(), (4,)], ids=["no breaker", "a breaker"])
def test_dry_penalizes_what_the_literal_reading_does(fields, breakers):
    generator = random.Random(7)
    for seed in range(20):
        sampling = Sampling(**fields, dry_multiplier=2.0, seed=seed)
        history = [generator.randrange(5) for _ in range(40)]
        positions = rows(seed, 12, spread=0.5)
        positions[:, :5] += 4.0  # so that few tokens compete and repeat
        assert chosen(sampling, 32, history, positions, breakers) == literal(sampling, 32, history, positions, breakers)


def test_dry_of_a_long_repetition_stays_finite_and_quick_to_say():
    sampling = Sampling(dry_multiplier=1.0, dry_base=4.0, temperature=0.0)
    tokens, amounts = Dry(sampling, 4096, [1, 2] * 1000, defaultdict(list)).penalties()
    assert tokens.tolist() == [1]
    assert np.isfinite(amounts).all()


def test_a_breaker_over_several_tokens_ends_a_repetition():
    words = {1: b"a", 2: b"b", 3: b" #", 4: b"#", 5: b"##x", 6: b"c"}

    class Model:
        n_vocab = 7

        def spell(self, token, *, special):
            return words.get(token, b"")

        def tokenize(self, text, *, add_special):
            return {"#": [4]}[text]

    tails = Breakers(Model()).tails(("##",))
    assert [tails[token] for token in range(7)] == [[], [], [], [[4]], [[4]], [[]], []]
    sampling = Sampling(dry_multiplier=1.0)
    repeated = [1, 2, 6, 1, 2, 6, 9, 1, 2]
    assert Dry(sampling, 64, repeated, tails).penalties()[0].tolist() == [6]
    assert Dry(sampling, 64, [1, 2, 3, 4, 6, 9, 2, 3, 4], tails).penalties()[0].tolist() == []
    assert Dry(sampling, 64, [1, 2, 3, 6, 9, 2, 3], tails).penalties()[0].tolist() == [6]


def test_dry_spells_the_tokens_it_meets_once_and_no_others():
    """So that the first request with DRY holds up no stream, however large the vocabulary is."""
    spelled = []

    class Model:
        n_vocab = 150_000

        def spell(self, token, *, special):
            spelled.append(token)
            return b"word"

        def tokenize(self, text, *, add_special):
            return []

    breakers = Breakers(Model())
    for _ in range(2):
        dry = Dry(Sampling(dry_multiplier=1.0), 64, [5, 7, 149_999, 5, 7], breakers.tails(("\n", ":")))
        dry.remember(149_999)
        assert dry.penalties()[0].tolist() == [5]
    assert sorted(spelled) == [5, 7, 149_999]


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


def test_the_frequencies_with_xtc_are_those_of_two_independent_draws():
    # Half the time the two likeliest, of the three at or above the threshold, are left out.
    chances = np.array([0.35, 0.30, 0.20, 0.10, 0.05])
    off = chances * (np.arange(5) >= 2)
    expected = (chances + off / off.sum()) / 2
    sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, xtc_probability=0.5, xtc_threshold=0.15, seed=5)
    sampler = Sampler(sampling, 5, 64, [0])
    logits = np.log(chances).astype(np.float32)
    counts = Counter(sampler.choose(logits) for _ in range(20_000))
    assert [counts[token] / 20_000 for token in range(5)] == pytest.approx(expected, abs=0.015)
