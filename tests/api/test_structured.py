"""Structured output: what of a request becomes a grammar, and what is said when the grammar is wrong."""

import pytest

from paceline.errors import RequestError, UnsupportedError
from paceline.serving.generation import Grammar, GrammarKind

CHAT = {"model": "coder-7m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "coder-7m", "prompt": "once"}
ROUTES = [
    (f"{prefix}/{path}", body)
    for prefix in ("/v1", "/api/v0")
    for path, body in (("chat/completions", CHAT), ("completions", TEXT))
]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
GBNF = 'root ::= "yes" | "no"'
GRAMMARS = [
    ({"response_format": {"type": "text"}}, None, None),
    (
        {"response_format": {"type": "json_object"}},
        Grammar(GrammarKind.JSON_SCHEMA, {"type": "object"}),
        "response_format",
    ),
    (
        {"response_format": {"type": "json_object", "schema": {"required": ["a"]}}},
        Grammar(GrammarKind.JSON_SCHEMA, {"type": "object", "required": ["a"]}),
        "response_format.schema",
    ),
    (
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        Grammar(GrammarKind.JSON_SCHEMA, SCHEMA),
        "response_format.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        Grammar(GrammarKind.JSON_SCHEMA, SCHEMA),
        "response_format.json_schema.schema",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "person", "description": "One", "strict": True, "schema": SCHEMA},
            }
        },
        Grammar(GrammarKind.JSON_SCHEMA, SCHEMA),
        "response_format.json_schema.schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": "true", "schema": {}}}},
        Grammar(GrammarKind.JSON_SCHEMA, {}),
        "response_format.json_schema.schema",
    ),
    ({"grammar": GBNF}, Grammar(GrammarKind.GBNF, GBNF), "grammar"),
    ({"grammar": GBNF, "response_format": {"type": "text"}}, Grammar(GrammarKind.GBNF, GBNF), "grammar"),
]


@pytest.mark.parametrize(("url", "body"), ROUTES)
@pytest.mark.parametrize(("change", "grammar", "field"), GRAMMARS)
def test_what_becomes_a_grammar(client, serving, url, body, change, grammar, field):
    assert client.post(url, json={**body, **change}).status_code == 200
    assert serving.calls[0].params.grammar == grammar


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("change", "grammar", "field"), GRAMMARS[1:])
@pytest.mark.parametrize("error", [RequestError, UnsupportedError])
def test_an_error_about_the_grammar_names_the_field_it_came_from(
    client, serving, error, change, grammar, field, stream
):
    serving.script[:] = [error("unknown type 'text'", param="grammar", help="write it otherwise")]
    answer = client.post("/v1/chat/completions", json={**CHAT, **change, "stream": stream})
    assert answer.status_code == 400
    told = answer.json()["error"]
    assert told["type"] == "invalid_request_error"
    assert told["code"] == error.code
    assert told["param"] == field
    assert told["message"] == "unknown type 'text'. Help: write it otherwise"
