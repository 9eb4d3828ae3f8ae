"""Every malformed request is answered with a 4xx in OpenAI's shape that names the field."""

import json
import re

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHAT = {"model": "coder-7m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "coder-7m", "prompt": "once"}
POSTS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/api/v0/chat/completions",
    "/api/v0/completions",
    "/api/v1/models/load",
    "/api/v1/models/unload",
]


def refused(answer, status=400):
    """The error of an answer, its shape checked."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0]",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": ["text"]}]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop"),
        ({"stop": ["a"] * 100}, "stop"),
        ({"seed": 10**40}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": "x"}, "frequency_penalty"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"repeat_last_n": -2}, "repeat_last_n"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"5": "1"}}, "logit_bias"),
        ({"logit_bias": {"9" * 30: 1}}, "logit_bias"),
        ({"ttl": 0}, "ttl"),
        ({"draft_model": 5}, "draft_model"),
        ({"speculative": {"maxTokensToDraft": 0}}, "speculative.maxTokensToDraft"),
        ({"speculative": []}, "speculative"),
        ({"n": 2}, "n"),
        ({"n": "1"}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"typical_p": 1.1}, "typical_p"),
        ({"xtc_probability": -0.1}, "xtc_probability"),
        ({"xtc_threshold": 2}, "xtc_threshold"),
        ({"dry_multiplier": -1}, "dry_multiplier"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"dry_allowed_length": 1.5}, "dry_allowed_length"),
        ({"dry_penalty_last_n": -2}, "dry_penalty_last_n"),
        ({"dry_sequence_breakers": "x"}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": ["x", 5]}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": ["x"] * 33}, "dry_sequence_breakers"),
        ({"contextOverflowPolicy": "explode"}, "contextOverflowPolicy"),
        ({"contextOverflowPolicy": 1}, "contextOverflowPolicy"),
        ({"speculative": {"promptLookup": "yes"}}, "speculative.promptLookup"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": "true"}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        ({"response_format": "json_object"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": []}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": "very"}}},
            "response_format.json_schema.strict",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 300_000]}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [0] * 30_000}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object", "schema": 5}}, "response_format.schema"),
        ({"grammar": 5}, "grammar"),
        ({"grammar": "x" * 300_000}, "grammar"),
        ({"grammar": 'root ::= "x"', "response_format": {"type": "json_object"}}, "grammar"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"preset": "mine"}, "preset"),
    ],
)
def test_the_wrong_field_is_named(client, serving, change, param):
    error = refused(client.post("/v1/chat/completions", json={**CHAT, **change}))
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert not serving.calls


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": None},
        {"prompt": 5},
        {"prompt": [1, 2]},
        {"prompt": ["a", "b"]},
        {"prompt": []},
        {"echo": True},
        {"suffix": "x"},
        {"logprobs": 21},
        {"logprobs": -1},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"best_of": 2},
    ],
    ids=str,
)
def test_fields_of_plain_completions(client, change):
    assert refused(client.post("/v1/completions", json={**TEXT, **change}))["param"] == next(iter(change))


def test_a_schema_deeper_than_a_body_may_be(client, serving):
    schema = {"type": "string"}
    for _ in range(64):
        schema = {"type": "array", "items": schema}
    body = {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    error = refused(client.post("/v1/chat/completions", json=body))
    assert error["param"] == "response_format"
    assert "64 levels" in error["message"]
    assert not serving.calls


@pytest.mark.parametrize("field", ["model", "messages"])
def test_a_missing_field(client, field):
    body = {name: value for name, value in CHAT.items() if name != field}
    error = refused(client.post("/v1/chat/completions", json=body))
    assert (error["param"], error["code"]) == (field, "missing_required_parameter")


def test_an_unknown_model_and_its_neighbours(client, serving):
    error = refused(client.post("/v1/chat/completions", json={**CHAT, "model": "coder-7b"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert 'Cannot find model "coder-7b"' in error["message"]
    assert "coder-7m" in error["message"]
    assert not serving.calls


def test_an_unknown_draft(client):
    error = refused(client.post("/v1/chat/completions", json={**CHAT, "draft_model": "invalid-model"}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "draft_model")
    assert error["message"].startswith('Cannot find model "invalid-model"')


def test_an_ambiguous_model(client):
    assert refused(client.post("/v1/completions", json={**TEXT, "model": "coder"}))["code"] == "ambiguous_model"


def test_an_embedding_model_does_not_chat(client):
    assert "embedding" in refused(client.post("/v1/completions", json={**TEXT, "model": "embedder"}))["message"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "coder-7m", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "coder-7m", "prompt": "x", "temperature": NaN}',
        b'{"model": "coder-7m", "prompt": "x", "temperature": 1e999}',
        b'{"model": "coder-7m", "prompt": "x", "unknown": -Infinity}',
        b'{"model": "coder-7m", "prompt": "\\ud800"}',
        b'{"model": "coder-7m", "prompt": "x", "\\udfff": 1}',
        b'{"a":' * 100_000,
        b"[" * 1_000_000,
        b'{"model": ' + b"[" * 500 + b"]" * 500 + b"}",
    ],
    ids=lambda body: repr(body[:60]),
)
def test_bodies_that_are_no_request(client, path, body):
    refused(client.post(path, content=body, headers={"content-type": "application/json"}))


def test_what_is_not_finite_is_named(client):
    body = b'{"model": "coder-7m", "prompt": "x", "logit_bias": {"5": NaN}}'
    error = refused(client.post("/v1/completions", content=body, headers={"content-type": "application/json"}))
    assert error["param"] == "logit_bias.5"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "json", "a" * 5000])
def test_a_wrong_content_type(client, content_type):
    headers = {"content-type": content_type}
    assert refused(client.post("/v1/completions", json=TEXT, headers=headers), 415)["code"] == "unsupported_media_type"


def test_a_content_type_with_parameters_is_json(client):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post("/v1/completions", json=TEXT, headers=headers).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body(client, chunked):
    data = b'{"model": "coder-7m", "prompt": "' + b"x" * (17 * 1024 * 1024) + b'"}'
    content = (data[i : i + 65536] for i in range(0, len(data), 65536)) if chunked else data
    answer = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert refused(answer, 413)["code"] == "request_too_large"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/api/ps", "/v1/responses", "/docs", "/openapi.json"])
def test_unknown_routes(client, path):
    error = refused(client.get(path), 404)
    assert error["code"] == "unknown_url"
    assert {"/health", "/v1/chat/completions", "/api/v1/models/load"} <= set(re.findall(r"/[\w/]+", error["message"]))


@pytest.mark.parametrize(
    ("method", "path"), [("GET", p) for p in POSTS[:4]] + [("POST", "/v1/models"), ("OPTIONS", POSTS[0])]
)
def test_wrong_methods(client, method, path):
    if path == "/v1/models":
        assert refused(client.post(path, json={}), 405)["code"] == "method_not_allowed"
    else:
        assert refused(client.request(method, path), 405)["code"] == "method_not_allowed"


# --- anything at all ---

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "model",
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "stop",
        "seed",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repeat_penalty",
        "repeat_last_n",
        "logit_bias",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "draft_model",
        "ttl",
        "speculative",
        "tools",
        "tool_choice",
        "response_format",
        "logprobs",
        "top_logprobs",
        "grammar",
        "typical_p",
        "dry_sequence_breakers",
        "contextOverflowPolicy",
        "echo",
        "suffix",
        "best_of",
        "functions",
        "preset",
        "context_length",
        "instance_id",
    ]
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def answered_well(answer):
    if answer.status_code == 200:
        return
    assert 400 <= answer.status_code < 500, answer.text
    refused(answer, answer.status_code)


@quick
@given(path=st.sampled_from(POSTS), change=st.dictionaries(fields, json_values, max_size=3))
def test_fields_of_any_value(client, path, change):
    base = TEXT if path.endswith("/completions") and "chat" not in path else CHAT
    data = json.dumps({**base, **change}).encode()
    answered_well(client.post(path, content=data, headers={"content-type": "application/json"}))


messages = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "x"]), json_values, max_size=4)
    | st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": json_values})
    | json_values,
    max_size=3,
)


@quick
@given(messages=messages)
def test_messages_of_any_value(client, messages):
    data = json.dumps({**CHAT, "messages": messages}).encode()
    answered_well(client.post(POSTS[0], content=data, headers={"content-type": "application/json"}))


@quick
@given(path=st.sampled_from(POSTS), body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bodies_of_any_bytes(client, path, body):
    answered_well(client.post(path, content=body, headers={"content-type": "application/json"}))


@quick
@given(path=st.text(st.characters(codec="ascii", exclude_characters="?#", min_codepoint=33), max_size=40))
def test_paths_of_any_text(client, path):
    try:
        url = client.base_url.copy_with(path="/v1/models/" + path)
    except httpx.InvalidURL:
        return
    answer = client.get(url)
    if answer.status_code not in (200, 307):
        refused(answer, 404)
