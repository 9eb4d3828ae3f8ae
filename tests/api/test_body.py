"""Bodies of any size and number of values: the event loop goes on, memory is bounded, and what is legitimate passes."""

import asyncio
import json
import threading
import tracemalloc
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, model_validator
from starlette.requests import Request

from paceline.api import body
from paceline.api.body import INLINE_BYTES, MAX_BODY_BYTES, MAX_CONTAINERS, MAX_VALUES, Schema, read, read_object
from paceline.api.completions import common_beginning
from paceline.api.errors import ApiError
from paceline.api.schemas import MAX_BIASES, MAX_MESSAGES, MAX_TEXT, ChatRequest, DetokenizeRequest

JSON = {"content-type": "application/json"}


def request_of(data: bytes) -> Request:
    async def receive():
        return {"type": "http.request", "body": data, "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}, receive)


@contextmanager
def memory_of_at_most(limit: int):
    """Fails when the block takes more than `limit` bytes at any moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= limit


@pytest.mark.parametrize("step", ["bound", "parse", "_check", "schema"])
def test_the_event_loop_turns_while_a_large_body_is_checked(step, monkeypatch):
    turned, begun = threading.Event(), threading.Event()

    def wait():
        begun.set()
        assert turned.wait(20), "the event loop stands still"

    class Waiting(Schema):
        @model_validator(mode="before")
        @classmethod
        def _waits(cls, value):
            if step == "schema":
                wait()
            return value

    if step != "schema":
        original = getattr(body, step)

        def waits(*args, **options):
            wait()
            return original(*args, **options)

        monkeypatch.setattr(body, step, waits)

    async def turn():
        while not begun.is_set():
            await asyncio.sleep(0)
        turned.set()

    async def main():
        data = json.dumps({"x": "y" * INLINE_BYTES}).encode()
        await asyncio.gather(read(request_of(data), Waiting), turn())

    asyncio.run(main())


def test_what_is_wrong_with_a_large_body_is_said_as_with_a_small_one(client, serving):
    for filling in ("", "y" * INLINE_BYTES):
        answer = client.post("/v1/completions", json={"model": "coder-7m", "prompt": 5, "filling": filling})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        answer = client.post(
            "/v1/completions", content=json.dumps({"a": filling, "b": [1, {"c": float("nan")}]}), headers=JSON
        )
        assert answer.json()["error"]["message"] == "b[1].c: the number is not finite."
    assert not serving.calls


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/api/v1/detokenize"])
@pytest.mark.parametrize(
    ("element", "what"),
    [
        (b"1", f"{MAX_VALUES} values and names"),
        (b'""', f"{MAX_VALUES} values and names"),
        (b"{}", f"{MAX_CONTAINERS} objects and lists"),
        (b"[[[[0]]]]", f"{MAX_CONTAINERS} objects and lists"),
    ],
)
def test_too_many_values(client, serving, path, element, what):
    count = MAX_BODY_BYTES // (len(element) + 1) - 20
    data = b'{"model":"coder-7m","x":[' + b",".join([element] * count) + b"]}"
    answer = client.post(path, content=data, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", None)
    assert error["message"] == f"The body has more than {what}; send less at once."
    assert not serving.calls


@pytest.mark.parametrize("element", [b"1", b'"a"', b'{"a":[]}', b"1.5"])
def test_too_many_values_take_no_memory(element):
    data = b'{"x":[' + b",".join([element] * (MAX_VALUES + 1)) + b"]}"
    # Copies of the bytes; texts are cut out before what is left is counted.
    with memory_of_at_most(4 * len(data)), pytest.raises(ApiError, match="more than"):
        read_object(data)


def test_values_take_memory_but_their_places_take_none():
    data = b'{"x":[' + b"1," * 100_000 + b"1]}"
    with memory_of_at_most(20 * len(data)):
        read_object(data)


def test_names_count_as_values():
    data = json.dumps({"x": {str(i): 0 for i in range(MAX_VALUES // 2)}}).encode()
    with pytest.raises(ApiError, match="values and names"):
        read_object(data)


def test_what_legitimate_requests_need(client, serving):
    text = {"type": "text", "text": "hi"}
    messages = [{"role": "user", "content": [text] * 8}] * MAX_MESSAGES
    biases = {str(token): 1 for token in range(MAX_BIASES)}
    chat = {"model": "coder-7m", "messages": messages, "logit_bias": biases}
    assert client.post("/v1/chat/completions", json=chat).status_code == 200
    answer = client.post("/api/v1/detokenize", json={"model": "coder-7m", "tokens": [65] * MAX_TEXT})
    assert answer.json()["text"] == "A" * MAX_TEXT
    # Far more commas, brackets and quotes than there may be values: all of them text.
    prompt = 'f([{"a": "\\\\"}], {}, [])\n' * 300_000
    assert client.post("/v1/completions", json={"model": "coder-7m", "prompt": prompt}).status_code == 200
    assert serving.calls[-1].params.prompt == prompt


def test_many_token_ids_are_refused_for_what_they_are(client):
    for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        error = client.post(path, json={"model": "coder-7m", field: [5] * 500_000}).json()["error"]
        assert error["param"] == field
        assert "token ids are not served" in error["message"]


@pytest.mark.parametrize(
    ("schema", "data"),
    [
        (DetokenizeRequest, {"model": "m", "tokens": ["a"] * 1000}),
        (ChatRequest, {"model": "m", "messages": [{"role": "king", "content": "x"}] * 1000}),
    ],
)
def test_only_the_first_of_many_wrong_elements_is_looked_at(schema, data):
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(data)
    assert caught.value.error_count() == 1


def test_other_encodings_than_utf_8():
    with pytest.raises(ApiError, match="not a JSON object"):
        read_object('{"x": "[,"}'.encode("utf-16-le"))
    assert read_object('{"x": "é"}'.encode("utf-8-sig")) == {"x": "é"}


class Uniterated(str):
    __slots__ = ()

    def __iter__(self):
        raise AssertionError("compared by the character")


@given(st.text("ab€😀", max_size=12), st.text("ab€😀", max_size=12), st.text("ab€😀", max_size=12))
def test_the_common_beginning(start, one, other):
    one, other = start + one, start + other
    same = max(n for n in range(len(one) + 1) if other.startswith(one[:n]))
    assert common_beginning(Uniterated(one), Uniterated(other)) == one[:same]
