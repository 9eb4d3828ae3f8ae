"""A short form of the proof runs here; comparing, counting and the test of the distribution on known figures."""

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest


@pytest.fixture(scope="session")
def lossless(bench):
    return bench("lossless")


@pytest.fixture(scope="session")
def distribution(bench):
    return bench("distribution")


@pytest.fixture(params=[pytest.param(engine, marks=pytest.mark.runtime) for engine in ("llama.cpp", "mlx")])
def pair(request, bench, tmp_path):
    """An engine, its runtime and the sample pair in its format."""
    heavy, mlx = bench("heavy_pair"), bench("mlx_pair")
    if request.param == "llama.cpp":
        return request.param, request.getfixturevalue("llama_cpp_runtime"), heavy.sample_main(), heavy.sample_draft()
    for source, name in ((heavy.sample_main(), "main"), (heavy.sample_draft(), "draft")):
        mlx.write_folder(source, tmp_path / name)
    return request.param, request.getfixturevalue("mlx_runtime"), tmp_path / "main", tmp_path / "draft"


def test_no_drafter_changes_a_token(lossless, pair):
    combinations = [s for s in lossless.SETTINGS if s.asks != "to 450 tokens"]
    assert {s.temperature for s in combinations if s.asks == "penalties"} == {0.0, 0.8, 1.5}
    if pair[0] == "mlx":  # it computes 16 bits slowly on a CPU
        combinations = combinations[1::4]
    # Of two prompts of each kind every combination gets one.
    short = [replace(s, max_tokens=12, share=8, first=n % 8) for n, s in enumerate(combinations)]
    proof = lossless.prove(*pair, prompts=2, seeds=0, settings=short)
    assert {c.setting for c in proof.comparisons} == {s.name for s in combinations}
    assert [c for c in proof.comparisons if c.first_difference is not None] == []
    drafters = {c.drafter for c in proof.comparisons} - {"none, before"}
    assert drafters == {d.name for d in lossless.DRAFTERS} - {"none, before"}
    fixed = {name for name in drafters if "automatic" not in name}  # those decide by the clock, and may draft nothing
    for name in fixed:
        assert sum(c.accepted for c in proof.comparisons if c.drafter == name) > 0, f"{name} showed nothing"


def test_every_setting_is_asked_of_each_prompt_at_one_temperature_or_at_all(lossless):
    asked = defaultdict(list)
    for setting in lossless.SETTINGS:
        asked[setting.asks].append({(kind, place) for kind, place, _ in lossless._asked(None, setting)})
    everything = set().union(*asked["nothing else"])
    assert asked.pop("nothing else") == [everything] * 3
    assert len(everything) >= 200
    grammars = asked.pop("json schema") + asked.pop("regular expression")
    long = asked.pop("to 450 tokens")
    assert sum(map(len, long)) == len(set().union(*long)) >= len(everything) / 12
    for shares in (grammars, *asked.values()):
        assert sum(map(len, shares)) == len(set().union(*shares)) == len(everything)
        assert min(map(len, shares)) >= len(everything) // len(shares)
        assert all({kind for kind, _ in share} == {kind for kind, _ in everything} for share in shares)


@pytest.mark.parametrize("pair", [pytest.param("llama.cpp", marks=pytest.mark.runtime)], indirect=True)
def test_drafted_tokens_are_sampled_from_the_main_model_s_distribution(lossless, pair):
    proof = lossless.prove(*pair, seeds=50, settings=())
    assert len(proof.fits) > 5
    assert [fit for fit in proof.fits if not fit.passed] == []
    assert sum(fit.drafted for fit in proof.fits) > 50


def test_there_are_two_hundred_prompts_and_none_twice(bench):
    prompts = [text for texts in bench("prompts").PROOF.values() for text in texts]
    assert len(prompts) == len(set(prompts)) >= 200


@pytest.mark.parametrize(
    ("plain", "drafted", "at"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 5, 3], 1), ([1, 2], [1, 2, 3], 2), ([1, 2], [], 0), ([], [], None)],
)
def test_where_two_answers_part(lossless, plain, drafted, at):
    assert lossless.first_difference(plain, drafted) == at


def test_the_table_counts_what_is_equal_and_says_where_the_rest_parts(lossless, distribution):
    def compared(at):
        return lossless.Comparison("mlx", "penalties", "draft, automatic", "code", 0, 40, at, 10, 4, None)

    fit = distribution.Fit("mlx", "code", "temperature 1", 100, 30, 4, 55.0, 0.00005, 9)
    proof = lossless.Proof("mlx", "mlx-any@1", (compared(None), compared(7), compared(None), compared(3)), (fit,))
    assert "| mlx | penalties | draft, automatic | 4 | 160 | 2 | 2 | 3, 7 | 40 | 16 |" in lossless.table([proof])
    assert "| 55.0 | 0.0001 | no |" in distribution.fit_table(proof.fits)
    assert lossless.Proof.from_json(json.loads(json.dumps(proof.to_json()))) == proof


# The test of the distribution


def test_the_sampler_chain_is_llama_cpp_s(distribution):
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], dtype=np.float32))

    def chances(history=(), **sampling):
        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        return distribution.probabilities(logits, neutral | sampling, history).round(4).tolist()

    assert chances() == [0.4, 0.3, 0.2, 0.06, 0.04]
    assert chances(top_k=2) == [0.5714, 0.4286, 0, 0, 0]
    assert chances(top_p=0.6) == [0.5714, 0.4286, 0, 0, 0]
    assert chances(min_p=0.45) == [0.4444, 0.3333, 0.2222, 0, 0]
    assert chances(temperature=0.5, top_k=2) == [0.64, 0.36, 0, 0, 0]
    assert chances(top_k=1, logit_bias={"4": 100.0}) == [0, 0, 0, 0, 1]
    assert chances([0, 0], presence_penalty=100.0, top_k=2) == [0, 0.6, 0.4, 0, 0]


def test_what_fits_passes_and_what_is_off_does_not(distribution):
    chances = np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    expected = distribution.expected_pairs(chances, dict.fromkeys((0, 1, 2), chances), 2000)
    assert sum(expected.values()) == pytest.approx(2000)
    assert all(count >= 5 for pair, count in expected.items() if pair != (-1, -1))
    random = np.random.default_rng(4)

    def counts(chances_of_second):
        first, second = random.choice(5, 2000, p=chances), random.choice(5, 2000, p=chances_of_second)
        return distribution.Counter(zip(first.tolist(), second.tolist(), strict=True))

    assert distribution.chi_square(expected, counts(chances))[2] > 0.01
    assert distribution.chi_square(expected, counts([0.6, 0.2, 0.15, 0.04, 0.01]))[2] < 0.001


def test_a_token_that_cannot_be_fails_the_test(distribution):
    certain = np.array([1.0, 0.0])
    expected = distribution.expected_pairs(certain, {0: certain}, 100)
    assert distribution.chi_square(expected, {(0, 0): 100})[2] == 1
    assert distribution.chi_square(expected, {(0, 0): 99, (0, 1): 1})[2] == 0
