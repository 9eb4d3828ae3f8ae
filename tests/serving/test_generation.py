"""The frames of `generate`: what is asked as the worker protocol has it, and what comes back as the host has it."""

import pytest

from paceline.serving.generation import (
    Completion,
    ContextOverflow,
    DraftKnobs,
    GenerateParams,
    Grammar,
    GrammarKind,
    LookupRecord,
    Piece,
    Sampling,
    TokenBatch,
    TokenLogprob,
)

RESULT = {"stop_reason": "eosFound", "prompt_tokens": 3, "completion_tokens": 9}
RECORD = {"drafted": 4, "accepted": 3, "rejected": 1, "ignored": 0, "rounds": 2}


def test_what_is_not_asked_for_is_not_in_the_frame():
    assert set(GenerateParams("once").frame()) == {"prompt", "stop", "sampling"}


def test_everything_asked_for_is_in_the_frame():
    frame = GenerateParams(
        "once",
        max_tokens=4,
        stop=("x",),
        sampling=Sampling(dry_sequence_breakers=("a",), seed=3),
        draft=DraftKnobs(model=False, lookup=True),
        logprobs=0,
        grammar=Grammar(GrammarKind.GBNF, 'root ::= "x"'),
        context_overflow=ContextOverflow.ROLLING_WINDOW,
    ).frame()
    assert frame.pop("sampling") == {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repeat_last_n": 64,
        "typical_p": 1.0,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": -1,
        "dry_sequence_breakers": ("a",),
        "logit_bias": {},
        "seed": 3,
    }
    assert frame == {
        "prompt": "once",
        "max_tokens": 4,
        "stop": ["x"],
        "draft": {
            "max_tokens": 16,
            "min_tokens": 0,
            "min_probability": 0.0,
            "exact_tokens": None,
            "model": False,
            "lookup": True,
        },
        "logprobs": 0,
        "grammar": {"gbnf": 'root ::= "x"'},
        "context_overflow": "rollingWindow",
    }


@pytest.mark.parametrize(
    ("asked", "needs"),
    [
        ({}, {}),
        ({"draft": DraftKnobs()}, {}),
        ({"logprobs": 0}, {"logprobs": "logprobs"}),
        ({"grammar": Grammar(GrammarKind.JSON_SCHEMA, {})}, {"grammar": "grammar"}),
        ({"draft": DraftKnobs(lookup=True)}, {"lookup": "draft.lookup"}),
        ({"context_overflow": ContextOverflow.TRUNCATE_MIDDLE}, {"overflow": "context_overflow"}),
    ],
)
def test_the_features_a_request_needs(asked, needs):
    assert GenerateParams("once", **asked).needs == needs


def test_pieces_may_leave_out_what_they_lack():
    told = {"logprob": -0.5, "bytes": [65], "top": [[8, -0.25, [66]], [7, -0.5, [65]]]}
    batch = TokenBatch.from_frame({"pieces": [[1], [2, "b"], [3, "c", True], [7, "", False, told]]})
    alternatives = (TokenLogprob(8, -0.25, b"B"), TokenLogprob(7, -0.5, b"A"))
    assert batch.pieces == (
        Piece(1, "", False),
        Piece(2, "b", False),
        Piece(3, "c", True),
        Piece(7, "", False, TokenLogprob(7, -0.5, b"A", alternatives)),
    )
    assert batch.text == "bc"


@pytest.mark.parametrize(
    ("lookup", "expected"), [({}, None), ({"lookup": {"drafted": 2, "accepted": 1}}, LookupRecord(2, 1))]
)
def test_the_share_of_prompt_lookup(lookup, expected):
    assert Completion.from_frame({**RESULT, "acceptance": {**RECORD, **lookup}}).acceptance.lookup == expected
