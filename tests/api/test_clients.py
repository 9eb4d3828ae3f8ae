"""The OpenAI SDK, and `llm` with `llm-lmstudio`, both unmodified, over scripted generations."""

import pytest

from paceline.errors import WorkerDied

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


@pytest.mark.parametrize("stream", [True, False])
def test_llm_with_its_lmstudio_plugin(clients, base_url, serving, tmp_path, stream):
    clients.llm_lists_models(base_url, MODEL, tmp_path)
    assert clients.llm_chats(base_url, MODEL, tmp_path, stream=stream) == "Hello!\n"
    assert list(serving.kept) == [MODEL]
    assert serving.calls[0].params.max_tokens == 24
