"""Tokens of a text, and text of tokens."""

import pytest

from paceline.errors import UnsupportedError


def test_there_and_back(client):
    told = client.post("/api/v1/tokenize", json={"model": "coder-7m", "text": "aé"})
    assert (told.status_code, told.json()) == (200, {"tokens": [94, 97, 233]})
    plain = client.post("/api/v1/tokenize", json={"model": "coder-7m", "text": "aé", "add_special": False}).json()
    assert plain == {"tokens": [97, 233]}
    assert client.post("/api/v1/detokenize", json={"model": "coder-7m", **plain}).json() == {"text": "aé"}
    assert client.post("/api/v1/tokenize", json={"model": "embedder", "text": "", "add_special": None}).json() == {
        "tokens": [94]
    }


@pytest.mark.parametrize(
    ("route", "fields", "param", "code"),
    [
        ("tokenize", {}, "text", "missing_required_parameter"),
        ("tokenize", {"text": 5}, "text", "invalid_type"),
        ("tokenize", {"text": ["a"]}, "text", "invalid_type"),
        ("tokenize", {"text": "a" * (2**20 + 1)}, "text", "invalid_value"),
        ("tokenize", {"text": "a", "add_special": "no"}, "add_special", "invalid_type"),
        ("detokenize", {}, "tokens", "missing_required_parameter"),
        ("detokenize", {"tokens": "a"}, "tokens", "invalid_type"),
        ("detokenize", {"tokens": [1, "a"]}, "tokens[1]", "invalid_type"),
        ("detokenize", {"tokens": [1.5]}, "tokens[0]", "invalid_type"),
        ("detokenize", {"tokens": [True]}, "tokens[0]", "invalid_type"),
        ("detokenize", {"tokens": [-1]}, "tokens[0]", "invalid_value"),
        ("detokenize", {"tokens": [2**31]}, "tokens[0]", "invalid_value"),
    ],
)
def test_mistakes_name_the_field(client, route, fields, param, code):
    answer = client.post(f"/api/v1/{route}", json={"model": "coder-7m", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


@pytest.mark.parametrize("route", ["tokenize", "detokenize"])
def test_the_model_must_be_known(client, route):
    for body in ({}, {"model": ""}):
        answer = client.post(f"/api/v1/{route}", json={"text": "a", "tokens": [1], **body})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    unknown = client.post(f"/api/v1/{route}", json={"model": "nix", "text": "a", "tokens": [1]})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_an_engine_that_cannot_is_told(client, serving):
    serving.lease_error = UnsupportedError("the engine slow 1 does not tell the tokens of a text", param="model")
    answer = client.post("/api/v1/tokenize", json={"model": "coder-7m", "text": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_parameter")
