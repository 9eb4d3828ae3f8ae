"""The OpenAI SDK, and `llm` with `llm-lmstudio`, both unmodified, over scripted generations."""

import pytest

from paceline.errors import OverloadedError, WorkerDied
from paceline.serving.generation import GrammarKind, Piece, TokenBatch, TokenLogprob

MODEL = "coder-7m"


def test_openai_sdk(clients, base_url, serving):
    clients.openai_lists_models(base_url, MODEL)
    assert clients.openai_chats(base_url, MODEL) == "Hello!"
    assert clients.openai_streams(base_url, MODEL) == "Hello!"
    assert clients.openai_completes(base_url, MODEL) == "Hello!"
    clients.openai_sees_errors(base_url, MODEL)


def test_openai_sdk_with_a_draft(clients, base_url, serving):
    serving.script[-1] = serving.completion(acceptance=serving.record)
    assert clients.openai_streams(base_url, MODEL, extra_body={"draft_model": "coder-3m"}) == "Hello!"
    assert serving.calls[0].draft.id == "coder-3m"


def test_openai_sdk_raises_when_a_stream_breaks(clients, base_url, serving):
    serving.script[1:] = [WorkerDied("the worker was killed by signal 9", log_tail="boom")]
    with pytest.raises(Exception, match="signal 9") as raised:
        clients.openai_streams(base_url, MODEL)
    assert type(raised.value).__name__ == "APIError"


def test_openai_sdk_sees_log_probabilities(clients, base_url, serving):
    top = tuple(TokenLogprob(i, -1.0 - i, b"x") for i in range(3))
    words = [Piece(7, word, False, TokenLogprob(7, -0.5, word.encode(), top)) for word in ("de", "f ☃")]
    serving.script = [TokenBatch((word,)) for word in words] + [serving.completion()]
    clients.openai_sees_log_probabilities(base_url, MODEL)
    assert [call.params.logprobs for call in serving.calls] == [3, 3, 3]


def test_openai_sdk_parses_structured_output(clients, base_url, serving):
    serving.script = [serving.batch('{"name": "Ada", "age"'), serving.batch(': 36, "mood": "cheerful"}')]
    serving.script.append(serving.completion())
    person = clients.openai_parses(base_url, MODEL)
    assert (person.name, person.age, person.mood) == ("Ada", 36, "cheerful")
    for call in serving.calls:
        assert call.params.grammar.kind is GrammarKind.JSON_SCHEMA
        assert set(call.params.grammar.source["properties"]) == {"name", "age", "mood"}


def test_openai_sdk_sees_that_a_queue_is_full(clients, base_url, serving):
    serving.script = [OverloadedError("64 requests already wait for this model")]
    with pytest.raises(Exception, match="64 requests") as raised:
        clients.openai_chats(base_url, MODEL)
    assert type(raised.value).__name__ == "RateLimitError"
    assert raised.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [True, False])
def test_llm_with_its_lmstudio_plugin(clients, base_url, serving, tmp_path, stream):
    clients.llm_lists_models(base_url, MODEL, tmp_path)
    assert clients.llm_chats(base_url, MODEL, tmp_path, stream=stream) == "Hello!\n"
    assert list(serving.kept) == [MODEL]
    assert serving.calls[0].params.max_tokens == 24
