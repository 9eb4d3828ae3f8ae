"""A request is checked field by field, and the acceptance record adds up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.acceptance import Acceptance
from paceline_worker.protocol import Fault
from paceline_worker.request import parse_generate

ROUND = st.integers(0, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.booleans(), st.booleans()))


@given(st.lists(ROUND, max_size=30), st.lists(st.integers(0, 5), max_size=5))
def test_every_drafted_token_is_accepted_rejected_or_ignored(rounds, dropped):
    record = Acceptance()
    for drafted, accepted, ended, looked_up in rounds:
        record.verified(drafted, accepted, ended=ended, looked_up=looked_up)
    for drafted in dropped:
        record.unverified(drafted)
    frame = record.frame()
    assert frame["drafted"] == sum(r[0] for r in rounds) + sum(dropped)
    assert frame["drafted"] == frame["accepted"] + frame["rejected"] + frame["ignored"]
    assert frame["accepted"] == sum(frame["accepted_per_position"]) == sum(r[1] for r in rounds)
    assert frame["rounds"] == sum(1 for r in rounds if r[0])
    assert frame["lookup"] == {
        "drafted": sum(r[0] for r in rounds if r[3]),
        "accepted": sum(r[1] for r in rounds if r[3]),
    }
    assert len(frame["drafted_per_position"]) == len(frame["accepted_per_position"])
    assert all(a <= d for a, d in zip(frame["accepted_per_position"], frame["drafted_per_position"], strict=True))


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "stop": "x"}, "stop"),
        ({"prompt": "a", "sampling": {"temperature": -1}}, "temperature"),
        ({"prompt": "a", "sampling": {"temperature": float("nan")}}, "temperature"),
        ({"prompt": "a", "sampling": {"temperature": "hot"}}, "temperature"),
        ({"prompt": "a", "sampling": {"temperature": 10**400}}, "temperature"),
        ({"prompt": "a", "sampling": {"logit_bias": {"5": 10**400}}}, "logit_bias"),
        ({"prompt": "a", "sampling": {"top_p": 1.5}}, "top_p"),
        ({"prompt": "a", "sampling": {"repeat_penalty": 0}}, "repeat_penalty"),
        ({"prompt": "a", "sampling": {"logit_bias": {"x": 1}}}, "logit_bias"),
        ({"prompt": "a", "sampling": {"logit_bias": {"5": float("inf")}}}, "logit_bias"),
        ({"prompt": "a", "sampling": []}, "sampling"),
        ({"prompt": "a", "draft": {"max_tokens": 65}}, "max_tokens"),
        ({"prompt": "a", "draft": {"exact_tokens": 0}}, "exact_tokens"),
        ({"prompt": "a", "draft": {"lookup": 1}}, "lookup"),
        ({"prompt": "a", "draft": {"model": "no"}}, "model"),
        ({"prompt": "a", "draft": 3}, "draft"),
    ],
)
def test_a_wrong_field_is_named(params, param):
    with pytest.raises(Fault) as caught:
        parse_generate(params)
    assert caught.value.data["param"] == param


def test_a_seed_outside_32_bits_is_folded_and_an_absent_one_is_drawn():
    def seed(value):
        return parse_generate({"prompt": "a", "sampling": {"seed": value}}).sampling.seed

    assert seed(7) == 7
    assert seed(-1) == 2**32 - 1
    assert len({seed(None) for _ in range(8)}) > 1


@pytest.mark.parametrize("temperature", [0, 1e-45, 1e-38, 1e-7])
def test_a_temperature_that_would_overflow_logits_takes_the_likeliest_token(temperature):
    assert parse_generate({"prompt": "a", "sampling": {"temperature": temperature}}).sampling.temperature == 0
    assert parse_generate({"prompt": "a", "sampling": {"temperature": 1e-6}}).sampling.temperature == 1e-6
