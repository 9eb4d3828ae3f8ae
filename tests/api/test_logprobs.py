"""Log probabilities in OpenAI's shapes: one entry for each token of the text that is shown."""

import math

import pytest

from paceline.api.logprobs import ShownTokens
from paceline.serving.generation import Piece, StopReason, TokenBatch, TokenLogprob

CHAT = {"model": "coder-7m", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "coder-7m", "prompt": "once"}
PREFIXES = ["/v1", "/api/v0"]


def piece(token, data, text=None, *, top=()):
    """A piece with its log probability; the text is the token's own unless given."""
    alternatives = tuple(TokenLogprob(i, logprob, other) for i, (other, logprob) in enumerate(top))
    shown = data.decode() if text is None else text
    return Piece(token, shown, False, TokenLogprob(token, -0.25 * token, data, alternatives))


HELLO = [
    piece(1, b"Hel", top=[(b"Hel", -0.25), (b"\xff", -2.0)]),
    piece(2, b"lo", top=[(b"p", -0.1), (b"\xfe", -1.0), (b"\xfd", -3.0)]),
    piece(3, b"", ""),
]
ENTRIES = [
    {
        "token": "Hel",
        "logprob": -0.25,
        "bytes": [72, 101, 108],
        "top_logprobs": [
            {"token": "Hel", "logprob": -0.25, "bytes": [72, 101, 108]},
            {"token": "�", "logprob": -2.0, "bytes": [255]},
        ],
    },
    {
        "token": "lo",
        "logprob": -0.5,
        "bytes": [108, 111],
        "top_logprobs": [
            {"token": "p", "logprob": -0.1, "bytes": [112]},
            {"token": "�", "logprob": -1.0, "bytes": [254]},
            {"token": "�", "logprob": -3.0, "bytes": [253]},
        ],
    },
]


@pytest.fixture
def hello(serving):
    """A generation of two tokens and the end."""
    serving.script = [TokenBatch((p,)) for p in HELLO]
    serving.script.append(serving.completion(stop_reason=StopReason.EOS_FOUND, completion_tokens=3))
    return serving


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("asked", "wanted"), [({"top_logprobs": 5}, 5), ({"top_logprobs": 0}, 0), ({}, 0)])
def test_chat(client, hello, prefix, asked, wanted):
    told = client.post(f"{prefix}/chat/completions", json={**CHAT, "logprobs": True, **asked}).json()
    assert hello.calls[0].params.logprobs == wanted
    assert told["choices"][0]["logprobs"] == {"content": ENTRIES, "refusal": None}
    assert told["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_chat_streamed(client, hello, events, prefix):
    body = {**CHAT, "logprobs": True, "top_logprobs": 5, "stream": True}
    chunks = [c["choices"][0] for c in events(client.post(f"{prefix}/chat/completions", json=body).text)]
    assert [c["logprobs"] for c in chunks] == [
        None,
        {"content": ENTRIES[:1], "refusal": None},
        {"content": ENTRIES[1:], "refusal": None},
        None,
    ]
    assert [c["delta"].get("content") for c in chunks] == ["", "Hel", "lo", None]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wanted", [0, 5, 20])
def test_plain_completions(client, hello, prefix, wanted):
    told = client.post(f"{prefix}/completions", json={**TEXT, "logprobs": wanted}).json()
    assert hello.calls[0].params.logprobs == wanted
    assert told["choices"][0]["logprobs"] == {
        "tokens": ["Hel", "lo"],
        "token_logprobs": [-0.25, -0.5],
        # The chosen token is always there; of several with the same text the likeliest.
        "top_logprobs": [{"Hel": -0.25, "�": -2.0}, {"p": -0.1, "�": -1.0, "lo": -0.5}],
        "text_offset": [0, 3],
    }


def test_plain_completions_streamed(client, hello, events):
    chunks = events(client.post("/v1/completions", json={**TEXT, "logprobs": 3, "stream": True}).text)
    first, second, last = [c["choices"][0] for c in chunks]
    assert (first["logprobs"]["tokens"], first["logprobs"]["text_offset"]) == (["Hel"], [0])
    assert (second["logprobs"]["tokens"], second["logprobs"]["text_offset"]) == (["lo"], [3])
    assert last["logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
def test_marks_and_log_probabilities_together(client, hello, events, stream):
    body = {
        **CHAT,
        "logprobs": True,
        "stream": stream,
        "draft_model": "coder-3m",
        "speculative": {"mark_drafted": True},
    }
    answer = client.post("/v1/chat/completions", json=body)
    choice = events(answer.text)[1]["choices"][0] if stream else answer.json()["choices"][0]
    assert choice["logprobs"]["content"][0] == ENTRIES[0]
    assert choice["drafted"] == [["Hel" if stream else "Hello", False]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_character_of_several_tokens_and_a_stop_string(client, serving, events, stream):
    """The parts of a character come with it; what became part of a stop string, or the end, is not shown."""
    snow = "☃".encode()
    serving.script = [
        TokenBatch((piece(1, snow[:1], ""), piece(2, snow[1:2], ""))),
        TokenBatch((piece(3, snow[2:] + b"!", "☃!"), piece(4, b"a EN", "a "))),
        TokenBatch((piece(5, b"D", ""),)),
        serving.completion(stop_reason=StopReason.STOP_STRING_FOUND, stop_string="END"),
    ]
    answer = client.post("/v1/completions", json={**TEXT, "logprobs": 0, "stop": "END", "stream": stream})
    choices = [c["choices"][0] for c in events(answer.text)] if stream else answer.json()["choices"]
    assert "".join(c["text"] for c in choices) == "☃!a "
    logprobs = choices[0]["logprobs"]
    assert logprobs["tokens"] == ["�", "�", "�!", "a EN"]
    assert logprobs["text_offset"] == [0, 0, 0, 2]
    assert [c["logprobs"] for c in choices[1:]] == ([None] if stream else [])


def test_tokens_wait_until_their_text_is_shown():
    shown = ShownTokens()
    assert shown.feed([piece(1, b"yes", "ye")])[0].offset == 0
    assert shown.feed([piece(2, b"ST", "")]) == []
    assert shown.feed([piece(3, b"", "")]) == []
    told = shown.feed([piece(4, b"AY", "sSTAY")])
    assert [(e.logprob.token, e.offset) for e in told] == [(2, 3), (3, 5), (4, 5)]


def test_what_is_impossible_has_a_number_that_json_can_say():
    frame = {"logprob": -math.inf, "bytes": [65], "top": [[7, None, [66]]]}
    told = TokenLogprob.from_frame(1, frame)
    assert (told.logprob, told.top[0].logprob) == (-9999.0, -9999.0)
