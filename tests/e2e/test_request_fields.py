"""What a request can ask for beyond text, over a real engine: log probabilities, structured output, prompt lookup,
contexts that overflow, further samplers."""

import json

import httpx
import pytest

pytestmark = pytest.mark.runtime

NAMES = ("width", "height", "depth", "colour", "weight")
GETTERS = "".join(f"    def get_{name}(self):\n        return self.{name}\n\n" for name in NAMES * 3)
"""A text that goes on as it began."""


def post(server, path, **body):
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chat(server, path="/v1/chat/completions", **body):
    return post(server, path, **{"messages": [{"role": "user", "content": "Describe Ada."}], **body})


# Log probabilities


def test_the_openai_sdk_sees_log_probabilities(server, clients, pair):
    clients.openai_sees_log_probabilities(server.url, pair[0])


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 3}], ids=["greedy", "seeded"])
def test_log_probabilities_are_the_same_with_a_draft(server, pair, sampling):
    request = {"model": pair[0], "prompt": GETTERS, "max_tokens": 24, "logprobs": 4, **sampling}
    plain = post(server, "/v1/completions", **request)["choices"][0]
    for drafting in (
        {"draft_model": pair[1], "speculative": {"numDraftTokensExact": 4}},
        {"speculative": {"promptLookup": True, "numDraftTokensExact": 4}},
    ):
        told = post(server, "/v1/completions", **request, **drafting)
        assert told["stats"]["total_draft_tokens_count"] > 0
        drafted = told["choices"][0]
        assert drafted["text"] == plain["text"] == "".join(plain["logprobs"]["tokens"])
        assert drafted["logprobs"]["tokens"] == plain["logprobs"]["tokens"]
        assert drafted["logprobs"]["token_logprobs"] == pytest.approx(plain["logprobs"]["token_logprobs"], abs=1e-3)


# Structured output


def test_the_openai_sdk_parses_structured_output(server, clients, pair):
    person = clients.openai_parses(server.url, pair[0], temperature=0, max_tokens=400)
    assert len(person.name) <= 12
    assert 0 <= person.age <= 150


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/v0/chat/completions"])
def test_a_json_object(server, pair, path):
    told = chat(server, path, model=pair[0], response_format={"type": "json_object"}, temperature=0, max_tokens=40)
    assert told["choices"][0]["message"]["content"].lstrip().startswith("{")
    schema = {"properties": {"tall": {"type": "boolean"}}, "required": ["tall"], "additionalProperties": False}
    form = {"type": "json_object", "schema": schema}
    told = chat(server, path, model=pair[0], response_format=form, temperature=0.7, seed=2, max_tokens=400)
    assert set(json.loads(told["choices"][0]["message"]["content"])) == {"tall"}


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v0/completions"])
def test_a_grammar_in_gbnf(server, pair, path):
    gbnf = 'root ::= ("yes" | "no") " " [0-9] [0-9]'
    request = {"model": pair[0], "prompt": "def", "grammar": gbnf, "temperature": 1, "seed": 4, "max_tokens": 40}
    plain = post(server, path, **request)
    drafted = post(server, path, **request, draft_model=pair[1], speculative={"numDraftTokensExact": 3})
    answer, digits = plain["choices"][0]["text"].split(" ")
    assert answer in ("yes", "no")
    assert len(digits) == 2
    assert digits.isdigit()
    assert plain["choices"][0]["finish_reason"] == "stop"
    assert plain["stats"]["stop_reason"] == "eosFound"
    assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
            "response_format.json_schema.schema",
        ),
        ("grammar", "root ::= elsewhere", "grammar"),
    ],
)
def test_a_grammar_that_means_nothing_is_the_client_s_error(server, pair, stream, field, value, param):
    body = {"model": pair[0], "prompt": "def", "max_tokens": 4, "stream": stream, field: value}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


# Further samplers


@pytest.mark.parametrize(
    "options",
    [
        {"typical_p": 0.3},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"dry_multiplier": 4.0, "dry_allowed_length": 1, "dry_sequence_breakers": ["#"]},
    ],
    ids=json.dumps,
)
def test_a_sampler_changes_the_answer_and_a_draft_does_not(server, pair, options):
    request = {"model": pair[0], "prompt": GETTERS, "max_tokens": 48, "temperature": 0.9, "top_k": 0, "seed": 6}
    without = post(server, "/v1/completions", **request)["choices"][0]["text"]
    plain = post(server, "/v1/completions", **request, **options)["choices"][0]["text"]
    fixed = {"numDraftTokensExact": 4}
    drafted = post(server, "/v1/completions", **request, **options, draft_model=pair[1], speculative=fixed)
    assert plain != without
    assert drafted["choices"][0]["text"] == plain


# Prompt lookup


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v0/completions"])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "seeded"])
def test_prompt_lookup_alone_changes_nothing_but_the_speed(server, pair, path, sampling):
    request = {"model": pair[0], "prompt": GETTERS, "max_tokens": 48, **sampling}
    plain = post(server, path, **request)
    looked_up = post(server, path, **request, speculative={"promptLookup": True, "numDraftTokensExact": 4})
    assert looked_up["choices"][0]["text"] == plain["choices"][0]["text"]
    stats = looked_up["stats"]
    assert "draft_model" not in stats
    assert stats["total_lookup_tokens_count"] == stats["total_draft_tokens_count"] > 0
    assert stats["accepted_lookup_tokens_count"] == stats["accepted_draft_tokens_count"] > 0
    assert not [name for name in plain["stats"] if "draft" in name or "lookup" in name]


def test_prompt_lookup_beside_a_draft_model(server, pair):
    request = {"model": pair[0], "prompt": GETTERS, "max_tokens": 48, "temperature": 0}
    plain = post(server, "/v1/completions", **request)
    both = post(server, "/v1/completions", **request, draft_model=pair[1], speculative={"promptLookup": True})
    assert both["choices"][0]["text"] == plain["choices"][0]["text"]
    stats = both["stats"]
    assert stats["draft_model"] == pair[1]
    assert 0 <= stats["accepted_lookup_tokens_count"] <= stats["total_lookup_tokens_count"]
    assert stats["total_lookup_tokens_count"] <= stats["total_draft_tokens_count"]


# Contexts that overflow


@pytest.mark.parametrize("policy", ["truncateMiddle", "rollingWindow"])
def test_a_prompt_longer_than_the_context_loses_tokens_where_it_may(server, pair, policy):
    request = {"model": pair[0], "prompt": "word " * 3000, "max_tokens": 4, "temperature": 0}
    told = post(server, "/v1/completions", **request, contextOverflowPolicy=policy)
    assert told["usage"]["completion_tokens"] == 4
    assert told["usage"]["prompt_tokens"] < 2048
    assert told["stats"]["dropped_context_tokens_count"] > 900
    refused = httpx.post(f"{server.url}/v1/completions", json={**request, "contextOverflowPolicy": "stopAtLimit"})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt"
