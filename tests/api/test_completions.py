"""The four completion routes: what they answer, whole and streamed, and what happens when something breaks."""

import json
import socket
from concurrent.futures import Future
from urllib.parse import urlsplit

import pytest

from paceline.errors import NotFoundError, OverloadedError, PairError, RequestError, UnsupportedError, WorkerDied
from paceline.serving.generation import (
    AcceptanceRecord,
    ContextOverflow,
    DraftKnobs,
    LookupRecord,
    Sampling,
    StopReason,
)

CHAT = {"model": "coder-7m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "coder-7m", "prompt": "once"}
ROUTES = [("/v1", "chat/completions", CHAT), ("/v1", "completions", TEXT)]
ROUTES += [("/api/v0", path, body) for _, path, body in ROUTES]


@pytest.mark.parametrize(("prefix", "path", "body"), ROUTES)
def test_a_whole_answer(client, serving, prefix, path, body):
    answer = client.post(f"{prefix}/{path}", json=body)
    assert answer.status_code == 200
    told = answer.json()
    choice = told["choices"][0]
    if path.startswith("chat"):
        assert told["id"].startswith("chatcmpl-")
        assert told["object"] == "chat.completion"
        assert choice["message"] == {"role": "assistant", "content": "Hello!"}
    else:
        assert told["id"].startswith("cmpl-")
        assert told["object"] == "text_completion"
        assert choice["text"] == "Hello!"
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "stop")
    assert told["model"] == "coder-7m"
    assert told["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    assert told["stats"].pop("time_to_first_token") > 0
    assert told["stats"] == {"tokens_per_second": 8.0, "generation_time": 0.5, "stop_reason": "eosFound"}
    if prefix == "/api/v0":
        assert told["model_info"] == {"arch": "llama", "quant": "Q8_0", "format": "gguf", "context_length": 2048}
        assert told["runtime"] == {
            "name": "llama.cpp-linux-x86_64-cpu",
            "version": "0.3.36",
            "supported_formats": ["gguf"],
        }
    else:
        assert "model_info" not in told


@pytest.mark.parametrize(("prefix", "path", "body"), ROUTES)
def test_a_stream(client, serving, events, prefix, path, body):
    serving.script[-1] = serving.completion(stop_reason=StopReason.MAX_TOKENS)
    answer = client.post(f"{prefix}/{path}", json={**body, "stream": True, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last, usage = events(answer.text)
    assert len({(c["id"], c["object"], c["created"], c["model"]) for c in [*chunks, last, usage]}) == 1
    if path.startswith("chat"):
        assert last["object"] == "chat.completion.chunk"
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["choices"][0]["delta"]["content"] for c in chunks] == ["", "Hel", "lo!"]
        assert last["choices"][0]["delta"] == {}
    else:
        assert [c["choices"][0]["text"] for c in chunks] == ["Hel", "lo!"]
        assert last["choices"][0]["text"] == ""
    assert {c["choices"][0]["finish_reason"] for c in chunks} == {None}
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["stats"]["stop_reason"] == "maxPredictedTokensReached"
    assert ("runtime" in last) is (prefix == "/api/v0")
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 16


def test_no_usage_chunk_unless_asked_for(client, events):
    chunks = events(client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text)
    assert all("usage" not in c and c["choices"] for c in chunks)


def test_the_messages_go_through_the_models_template(client, serving):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "☃"},
    ]
    client.post("/v1/chat/completions", json={**CHAT, "messages": messages})
    assert serving.calls[0].params.prompt == "<system>be brief<user>a\nb<assistant><user>☃<assistant>"


def test_every_field_arrives(client, serving):
    body = {
        "stop": "END",
        "seed": 7,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "typical_p": 0.9,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "dry_multiplier": 0.8,
        "dry_base": 2,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 256,
        "dry_sequence_breakers": ["\n", "-"],
        "logit_bias": {"15": -100, "0": 2.5},
        "contextOverflowPolicy": "truncateMiddle",
        "max_tokens": 12,
        "ttl": 60,
        "draft_model": "coder-3m",
        "speculative": {
            "maxTokensToDraft": 8,
            "minDraftLengthToConsider": 2,
            "minContinueDraftingProbability": 0.5,
            "numDraftTokensExact": 3,
            "promptLookup": True,
        },
        # harmless, known or not
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "n": 1,
        "tools": [],
        "response_format": {"type": "text"},
        "logprobs": False,
        "never_heard_of": [1, 2],
    }
    assert client.post("/v1/completions", json={**TEXT, **body}).status_code == 200
    call = serving.calls[0]
    assert (call.model.id, call.draft.id, call.ttl_s) == ("coder-7m", "coder-3m", 60)
    assert call.params.stop == ("END",)
    assert call.params.max_tokens == 12
    assert call.params.draft == DraftKnobs(8, 2, 0.5, 3, model=True, lookup=True)
    assert call.params.context_overflow is ContextOverflow.TRUNCATE_MIDDLE
    assert call.params.logprobs is None
    assert call.params.grammar is None
    assert call.params.sampling == Sampling(
        temperature=0,
        top_k=0,
        top_p=0.5,
        min_p=0.1,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        presence_penalty=0.2,
        frequency_penalty=-0.3,
        typical_p=0.9,
        xtc_probability=0.5,
        xtc_threshold=0.2,
        dry_multiplier=0.8,
        dry_base=2,
        dry_allowed_length=3,
        dry_penalty_last_n=256,
        dry_sequence_breakers=("\n", "-"),
        logit_bias={15: -100.0, 0: 2.5},
        seed=7,
    )


def test_absent_and_null_fields_mean_the_defaults(client, serving):
    nulls = dict.fromkeys(
        [
            "stop",
            "seed",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "logit_bias",
            "max_tokens",
            "draft_model",
            "n",
            "tools",
            "logprobs",
            "top_logprobs",
            "response_format",
            "grammar",
            "repeat_last_n",
            "typical_p",
            "xtc_probability",
            "xtc_threshold",
            "dry_multiplier",
            "dry_base",
            "dry_allowed_length",
            "dry_penalty_last_n",
            "dry_sequence_breakers",
            "contextOverflowPolicy",
            "speculative",
        ]
    )
    nothings = {"draft_model": "", "max_tokens": -1, "seed": -1, "stop": [""], "grammar": "", "top_logprobs": 0}
    for extra in ({}, nulls, nothings, {"speculative": {"promptLookup": None}}, {"response_format": {"type": "text"}}):
        assert client.post("/v1/completions", json={**TEXT, **extra}).status_code == 200
    for call in serving.calls:
        assert call.draft is None
        assert call.params.draft is None
        assert call.params.max_tokens is None
        assert call.params.stop == ()
        assert call.params.logprobs is None
        assert call.params.grammar is None
        assert call.params.context_overflow is ContextOverflow.STOP_AT_LIMIT
        assert call.params.sampling == Sampling()


def test_max_completion_tokens_wins(client, serving):
    client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5, "max_completion_tokens": 9})
    client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 5, "max_completion_tokens": -1})
    assert [call.params.max_tokens for call in serving.calls] == [9, None]


@pytest.mark.parametrize("stream", [False, True])
def test_the_acceptance_record(client, serving, events, stream):
    serving.script[-1] = serving.completion(acceptance=serving.record)
    body = {**CHAT, "draft_model": "coder-3m", "stream": stream, "stream_options": {"include_usage": True}}
    answer = client.post("/v1/chat/completions", json=body)
    if stream:
        *_, told, usage = events(answer.text)
        usage = usage["usage"]
    else:
        told = answer.json()
        usage = told["usage"]
    stats = told["stats"]
    assert stats["draft_model"] == "coder-3m"
    assert stats["total_draft_tokens_count"] == 7
    assert stats["accepted_draft_tokens_count"] == 4
    assert stats["rejected_draft_tokens_count"] == 2
    assert stats["ignored_draft_tokens_count"] == 1
    assert stats["mean_accepted_length"] == 2.0
    assert stats["longest_verified_draft"] == 3
    assert usage["completion_tokens_details"] == {"accepted_prediction_tokens": 4, "rejected_prediction_tokens": 2}


@pytest.mark.parametrize("draft", [None, "coder-3m"])
def test_prompt_lookup_with_and_without_a_draft_model(client, serving, draft):
    record = AcceptanceRecord(drafted=7, accepted=4, rejected=2, ignored=1, rounds=2, lookup=LookupRecord(5, 3))
    serving.script[-1] = serving.completion(acceptance=record)
    body = {**CHAT, "draft_model": draft, "speculative": {"promptLookup": True, "maxTokensToDraft": 8}}
    stats = client.post("/v1/chat/completions", json=body).json()["stats"]
    assert serving.calls[0].params.draft == DraftKnobs(max_tokens=8, model=draft is not None, lookup=True)
    assert stats.get("draft_model") == draft
    assert (stats["total_draft_tokens_count"], stats["accepted_draft_tokens_count"]) == (7, 4)
    assert (stats["total_lookup_tokens_count"], stats["accepted_lookup_tokens_count"]) == (5, 3)


def test_the_counts_of_prompt_lookup_are_there_only_if_it_was_asked_for(client, serving):
    record = AcceptanceRecord(drafted=7, accepted=4, rejected=2, ignored=1, rounds=2, lookup=LookupRecord(0, 0))
    serving.script[-1] = serving.completion(acceptance=record)
    stats = client.post("/v1/chat/completions", json={**CHAT, "draft_model": "coder-3m"}).json()["stats"]
    assert stats["total_draft_tokens_count"] == 7
    assert not [name for name in stats if "lookup" in name]


def test_what_was_dropped_of_the_context_is_counted_where_it_may_be(client, serving):
    serving.script[-1] = serving.completion(context_dropped=40)
    rolling = {**TEXT, "contextOverflowPolicy": "rollingWindow"}
    assert client.post("/v1/completions", json=rolling).json()["stats"]["dropped_context_tokens_count"] == 40
    for body in (TEXT, {**TEXT, "contextOverflowPolicy": "stopAtLimit"}):
        assert "dropped_context_tokens_count" not in client.post("/v1/completions", json=body).json()["stats"]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (None, ""),
        ("stopAtLimit", ""),
        ("rollingWindow", "<system>be brief<"),
        ("truncateMiddle", "<system>be brief<user>a<assistant>"),
    ],
)
def test_the_beginning_of_a_chat_stays_when_its_context_overflows(client, serving, policy, kept):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    client.post("/v1/chat/completions", json={**CHAT, "messages": messages, "contextOverflowPolicy": policy})
    client.post("/v1/chat/completions", json={**CHAT, "messages": messages[1:2], "contextOverflowPolicy": policy})
    client.post("/v1/completions", json={**TEXT, "contextOverflowPolicy": policy})
    first, alone, text = (call.params for call in serving.calls)
    assert first.context_keep == kept
    assert first.prompt.startswith(first.context_keep)
    assert (alone.context_keep, text.context_keep) == ("", "")


def test_a_draft_that_took_no_part_is_explained_and_not_counted(client, serving):
    serving.script[-1] = serving.completion(draft_skipped="the engine cannot")
    stats = client.post("/v1/chat/completions", json={**CHAT, "draft_model": "coder-3m"}).json()["stats"]
    assert stats["draft_skipped"] == "the engine cannot"
    assert not [name for name in stats if name.endswith("_count")]


def test_drafted_marks(client, serving, events):
    body = {**CHAT, "draft_model": "coder-3m", "speculative": {"mark_drafted": True}}
    whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert whole["drafted"] == [["Hello", False], ["!", True]]
    chunks = events(client.post("/v1/chat/completions", json={**body, "stream": True}).text)
    assert [c["choices"][0].get("drafted") for c in chunks] == [
        None,
        [["Hel", False]],
        [["lo", False], ["!", True]],
        None,
    ]


@pytest.mark.parametrize("text", ['quote " back \\ line\nnul\x00', "☃ \U0001f6b2 \u2028", "half \ud800 pair"])
def test_any_text_makes_a_well_formed_stream(client, serving, events, text):
    serving.script[:-1] = [serving.batch(text), serving.batch(""), serving.batch("end")]
    chunks = events(client.post("/v1/completions", json={**TEXT, "stream": True}).text)
    expected = [text.encode("utf-8", "replace").decode(), "end", ""]
    assert [c["choices"][0]["text"] for c in chunks] == expected


def test_an_answer_without_any_token(client, serving, events):
    serving.script[:] = [serving.completion(completion_tokens=0, generation_s=0.0)]
    told = client.post("/v1/chat/completions", json=CHAT).json()
    assert told["choices"][0]["message"]["content"] == ""
    assert told["stats"]["tokens_per_second"] is None
    assert told["stats"]["time_to_first_token"] is None
    assert len(events(client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text)) == 2


# --- failures ---


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param"),
    [
        (
            PairError("token 139 differs", help="x", param="draft_model"),
            400,
            "invalid_request_error",
            "incompatible_draft",
            "draft_model",
        ),
        (RequestError("too long", param="messages"), 400, "invalid_request_error", "invalid_request", "messages"),
        (
            UnsupportedError("the engine cannot", param="context_overflow"),
            400,
            "invalid_request_error",
            "unsupported_parameter",
            "contextOverflowPolicy",
        ),
        (
            UnsupportedError("the engine cannot", param="draft.lookup"),
            400,
            "invalid_request_error",
            "unsupported_parameter",
            "speculative.promptLookup",
        ),
        (OverloadedError("too many wait"), 429, "rate_limit_error", "overloaded", None),
        (NotFoundError("no runtime"), 503, "engine_error", "not_found", None),
        (WorkerDied("died of signal 9", log_tail="boom"), 500, "engine_error", "worker_died", None),
        (KeyError("bug"), 500, "internal_error", "internal_error", None),
    ],
)
def test_what_fails_before_the_first_token_has_its_own_status(
    client, serving, stream, error, status, kind, code, param
):
    if isinstance(error, (PairError, NotFoundError)):
        serving.lease_error = error
    else:
        serving.script[:] = [error]
    answer = client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert answer.status_code == status
    told = answer.json()["error"]
    assert (told["type"], told["code"], told["param"]) == (kind, code, param)
    assert (answer.headers.get("retry-after") == "1") is (status == 429)
    if isinstance(error, WorkerDied):
        assert "signal 9" in told["message"]
        assert told["log_tail"] == "boom"


@pytest.mark.parametrize(("prefix", "path", "body"), ROUTES)
def test_an_error_about_the_prompt_names_the_routes_own_field(client, serving, prefix, path, body):
    serving.script[:] = [RequestError("the prompt has 6001 tokens", param="messages")]
    error = client.post(f"{prefix}/{path}", json=body).json()["error"]
    assert error["param"] == ("messages" if path.startswith("chat") else "prompt")


def test_a_worker_that_dies_in_the_middle_of_a_stream(client, serving, events):
    serving.script[:] = [serving.batch("par"), WorkerDied("the worker was killed by signal 9", log_tail="last words")]
    answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.status_code == 200
    *_, chunk, error = events(answer.text, done=False)
    assert chunk["choices"][0]["delta"]["content"] == "par"
    assert error["error"]["type"] == "engine_error"
    assert "signal 9" in error["error"]["message"]
    assert error["error"]["log_tail"] == "last words"
    serving.reset()
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_generation_that_ends_without_a_result(client, serving):
    serving.script[:] = [serving.batch("x")]
    answer = client.post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "engine_error"


def test_messages_the_template_refuses(client):
    body = {**CHAT, "messages": [{"role": "system", "content": "forbidden"}]}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    assert "no such system prompt" in answer.json()["error"]["message"]


def test_a_model_without_a_template_still_completes(client):
    answer = client.post("/v1/chat/completions", json={**CHAT, "model": "family/plain"})
    assert answer.status_code == 400
    assert "/v1/completions" in answer.json()["error"]["message"]
    assert client.post("/v1/completions", json={**TEXT, "model": "family/plain"}).status_code == 200


# --- clients that go away ---


def post_and_hang_up(base_url, path, body, *, read_until=None):
    """Send a request over a bare socket, read until the marker has come, and close."""
    at = urlsplit(base_url)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(data)}\r\n\r\n"
    connection = socket.create_connection((at.hostname, at.port), timeout=30)
    connection.sendall(head.encode() + data)
    received = b""
    while read_until is not None and read_until not in received:
        received += connection.recv(65536)
    return connection


@pytest.mark.parametrize("held_at", [0, 1], ids=["before the first token", "in the middle"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_generation(base_url, client, serving, stream, held_at):
    never = Future()
    serving.script.insert(held_at, never)
    marker = b"Hel" if stream and held_at else None
    connection = post_and_hang_up(base_url, "/v1/chat/completions", {**CHAT, "stream": stream}, read_until=marker)
    prompt = serving.began.get(timeout=30)
    assert serving.cancelled.empty()
    connection.close()
    assert serving.cancelled.get(timeout=30) == prompt
    never.cancel()
    serving.reset()
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert serving.cancelled.empty()


def test_requests_run_side_by_side(base_url, client, serving):
    gate = Future()
    serving.script.insert(1, gate)
    connection = post_and_hang_up(base_url, "/v1/chat/completions", {**CHAT, "stream": True}, read_until=b"Hel")
    serving.script = [serving.batch("quick"), serving.completion()]
    told = client.post("/v1/chat/completions", json=CHAT).json()
    assert told["choices"][0]["message"]["content"] == "quick"
    gate.set_result(None)
    rest = b""
    while b"[DONE]" not in rest:
        rest += connection.recv(65536)
    connection.close()
    assert b"lo!" in rest
