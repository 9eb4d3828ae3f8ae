"""Samplers, log probabilities and grammars of the llama.cpp worker: a draft changes nothing, a grammar is kept."""

import collections
import json
import math
import re

import pytest

from paceline import paths, plugins

pytestmark = pytest.mark.runtime

PROMPT = "<|im_start|>user\nWrite a Python function `close`.<|im_end|>\n<|im_start|>assistant\n"
MODEL_S_OWN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llama(module_wires, llama_cpp_runtime):
    """A worker with the sample pair, for the whole module."""
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)
    wire = module_wires(spec.argv, dict(spec.env))
    assert {"logprobs", "grammar"} <= set(wire.call("initialize", protocol=1)["features"])
    wire.call("load", role="main", path=str(paths.samples() / "paceline-coder-7m-q8_0.gguf"))
    wire.call("load", role="draft", path=str(paths.samples() / "paceline-coder-3m-q8_0.gguf"))
    return wire


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.8, "typical_p": 0.5},
        {"temperature": 0.8, "typical_p": 0.5, "top_k": 0},
        {"temperature": 0.8, "xtc_probability": 0.6, "xtc_threshold": 0.05},
        {"temperature": 0, "dry_multiplier": 2.0, "dry_allowed_length": 1},
        {"temperature": 0.8, "dry_multiplier": 2.0, "dry_sequence_breakers": [":"]},
    ],
    ids=json.dumps,
)
def test_a_draft_changes_no_sampler_s_choice(llama, sampling):
    changed = 0
    for seed in range(3):
        request = {"prompt": PROMPT, "max_tokens": 40, "ignore_eos": True}
        plain = llama.generate(**request, sampling={**sampling, "seed": seed})
        drafted = llama.generate(**request, sampling={**sampling, "seed": seed}, draft={"exact_tokens": 4})
        without = llama.generate(**request, sampling={"temperature": sampling["temperature"], "seed": seed})
        assert drafted.tokens == plain.tokens
        changed += plain.tokens != without.tokens
    assert changed, "the sampler does nothing here"


def test_dry_looks_at_the_prompt(llama):
    lines = "    self.first = first\n    self.second = second\n    self.third = third\n"
    request = {"prompt": lines * 6, "max_tokens": 7}
    dry = {"temperature": 0, "dry_multiplier": 5.0, "dry_sequence_breakers": ["§"]}
    plain = llama.generate(**request, sampling={"temperature": 0})
    assert plain.text.startswith("    self.third")
    assert "self.third" not in llama.generate(**request, sampling=dry).text
    assert llama.generate(**request, sampling=dry | {"dry_penalty_last_n": 0}).tokens == plain.tokens


def test_typical_sampling_survives_probabilities_of_zero(llama):
    def tokens(seed, bias):
        sampling = {"temperature": 0.8, "typical_p": 0.5, "top_k": 0, "seed": seed}
        never = {str(token): bias for token in range(2000, 2090)}
        return llama.generate(prompt=PROMPT, max_tokens=30, sampling=sampling | {"logit_bias": never}).tokens

    for seed in range(3):
        assert tokens(seed, -10_000) == tokens(seed, -30)


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize(
    "grammar", [{"json_schema": PERSON}, {"regex": r"[a-z]{2,9} = [0-9]{3};"}], ids=["schema", "regex"]
)
def test_a_draft_changes_nothing_under_a_grammar(llama, temperature, grammar):
    for seed in range(3):
        sampling = {"temperature": temperature, "seed": seed}
        request = {"prompt": PROMPT, "max_tokens": 400, "sampling": sampling, "grammar": grammar, "logprobs": 2}
        plain = llama.generate(**request)
        drafted = llama.generate(**request, draft={"exact_tokens": 4})
        assert drafted.tokens == plain.tokens
        assert [p["logprob"] for p in drafted.logprobs] == pytest.approx(
            [p["logprob"] for p in plain.logprobs], abs=1e-3
        )
        assert plain.result["stop_reason"] == "eosFound", plain.text
        if "regex" in grammar:
            assert re.fullmatch(grammar["regex"], plain.text)
        else:
            assert_is_a_person(json.loads(plain.text))


def assert_is_a_person(value):
    assert list(value) == ["name", "age", "tags"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert isinstance(value["age"], int)
    assert 0 <= value["age"] <= 120
    assert len(value["tags"]) <= 3
    assert set(value["tags"]) <= {"a", "b"}


def test_a_grammar_renormalizes_the_model_s_distribution(llama):
    prompt = PROMPT + 'def close(self):\n    """'
    top = llama.generate(prompt=prompt, max_tokens=1, logprobs=20).logprobs[0]["top"]
    words = {bytes(data).decode(): math.exp(logprob) for _, logprob, data in top if bytes(data).isalpha()}
    likeliest = sorted(words, key=words.__getitem__, reverse=True)[:4]
    # Not the likeliest of all: it is refused often, so that both ways to a token are walked.
    allowed = likeliest[1:]
    count, seen = 400, collections.Counter()
    for seed in range(count):
        request = {"prompt": prompt, "max_tokens": 1, "grammar": {"regex": "|".join(allowed)}}
        seen[llama.generate(**request, sampling=MODEL_S_OWN | {"seed": seed}).text] += 1
    total = sum(words[word] for word in allowed)
    for word in allowed:
        expected = count * words[word] / total
        assert abs(seen[word] - expected) < 4 * math.sqrt(expected) + 2, (seen, word, expected)


def test_the_turn_ends_where_the_grammar_may_and_nowhere_else(llama):
    # "[a-z ]*" may end everywhere, "[a-z ]{200,}" not for a long while.
    sampling = {"temperature": 0, "logit_bias": {"4093": 100, "4095": 100}}
    request = {"prompt": PROMPT, "max_tokens": 8, "sampling": sampling}
    assert llama.generate(**request, grammar={"regex": "[a-z ]*"}).text == ""
    held = llama.generate(**request, grammar={"regex": "[a-z ]{200,}"})
    assert held.result["stop_reason"] == "maxPredictedTokensReached"
    assert re.fullmatch("[a-z ]+", held.text)
    ended = llama.generate(**request, grammar={"regex": "[a-z ]{3,}"}, ignore_eos=True)
    assert ended.result["stop_reason"] == "eosFound"
    assert ended.pieces[-1][1] == ""


def test_a_grammar_that_becomes_too_dear_ends_its_own_generation_only(llama, refused):
    grammar = {"regex": "((a{1,1000}){1,1000}){400,1000}"}
    beside = llama.begin("generate", prompt=PROMPT, max_tokens=60, sampling={"temperature": 0}, ignore_eos=True)
    dear = llama.begin("generate", prompt=PROMPT, grammar=grammar, sampling={"temperature": 0}, draft={})
    with pytest.raises(refused) as error:
        llama.answer(dear)
    assert (error.value.kind, error.value.data["param"]) == ("invalid_request", "grammar")
    assert llama.answer(beside)["completion_tokens"] == 60
    assert llama.call("health") == {"state": "idle", "running": [], "waiting": []}


@pytest.mark.parametrize(
    "grammar",
    [{"regex": "[ab"}, {"gbnf": "root ::= missing"}, {"lark": 3}, {"xml": "a"}, {}, {"regex": "a", "lark": "a"}, "a"],
    ids=json.dumps,
)
def test_what_is_no_grammar_is_refused(llama, refused, grammar):
    with pytest.raises(refused) as error:
        llama.call("generate", prompt=PROMPT, grammar=grammar)
    assert (error.value.kind, error.value.data["param"]) == ("invalid_request", "grammar")
