"""What unmodified clients do with a server, as functions of its address and a model: run over scripts and over engines.

`tests/conftest.py` hands this module out as the fixture `clients`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import openai
import pytest
from pydantic import BaseModel, Field


def openai_lists_models(base_url: str, model: str) -> None:
    with _openai(base_url) as client:
        assert model in [m.id for m in client.models.list()]
        assert client.models.retrieve(model).id == model


def openai_chats(base_url: str, model: str, **options) -> str:
    """A whole answer; its text."""
    with _openai(base_url) as client:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "add two numbers"}], max_tokens=24, seed=1, **options
        )
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.stats["stop_reason"]
    return answer.choices[0].message.content


def openai_streams(base_url: str, model: str, **options) -> str:
    """A streamed answer; its text."""
    with _openai(base_url) as client:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "add two numbers"}],
            max_tokens=24,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        chunks = list(stream)
    *deltas, last, usage = chunks
    assert deltas[0].choices[0].delta.role == "assistant"
    assert last.choices[0].finish_reason in ("stop", "length")
    assert last.stats["stop_reason"]
    assert usage.choices == []
    assert usage.usage.completion_tokens > 0
    return "".join(chunk.choices[0].delta.content or "" for chunk in deltas)


def openai_completes(base_url: str, model: str) -> str:
    """Plain completions, whole and streamed, give the same text; that text."""
    with _openai(base_url) as client:
        whole = client.completions.create(model=model, prompt="def add(", max_tokens=12, temperature=0)
        stream = client.completions.create(model=model, prompt="def add(", max_tokens=12, temperature=0, stream=True)
        streamed = "".join(chunk.choices[0].text for chunk in stream)
    assert whole.object == "text_completion"
    assert whole.choices[0].text == streamed
    return streamed


def openai_sees_log_probabilities(base_url: str, model: str) -> None:
    """Whole and streamed, in chat and in plain completions, the entries spell the text."""
    request = {"model": model, "max_tokens": 8, "temperature": 0}
    chat = request | {"messages": [{"role": "user", "content": "add two numbers"}], "logprobs": True, "top_logprobs": 3}
    with _openai(base_url) as client:
        whole = client.chat.completions.create(**chat).choices[0]
        chunks = [c.choices[0] for c in client.chat.completions.create(**chat, stream=True)]
        text = client.completions.create(**request, prompt="def add(", logprobs=3).choices[0]
    streamed = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content]
    assert streamed == whole.logprobs.content
    assert b"".join(bytes(e.bytes) for e in streamed).decode(errors="replace") == whole.message.content
    for entry in streamed:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.token == bytes(entry.bytes).decode(errors="replace")
    assert "".join(text.logprobs.tokens) == text.text
    assert len(text.logprobs.token_logprobs) == len(text.logprobs.top_logprobs) == len(text.logprobs.tokens)
    for offset, token in zip(text.logprobs.text_offset, text.logprobs.tokens, strict=True):
        assert text.text[offset:].startswith(token)


class Person(BaseModel):
    """What `openai_parses` asks for."""

    name: Annotated[str, Field(max_length=12)]
    age: Annotated[int, Field(ge=0, le=150)]
    mood: Literal["cheerful", "gloomy"]


def openai_parses(base_url: str, model: str, **options) -> Person:
    """An answer in the form of a pydantic model, whole and streamed."""
    request = {"model": model, "messages": [{"role": "user", "content": "Describe Ada."}], "seed": 1, **options}
    with _openai(base_url) as client:
        whole = client.chat.completions.parse(**request, response_format=Person)
        with client.chat.completions.stream(**request, response_format=Person) as stream:
            streamed = stream.get_final_completion()
    person = whole.choices[0].message.parsed
    assert isinstance(person, Person)
    assert streamed.choices[0].message.parsed == person
    return person


def openai_sees_errors(base_url: str, model: str) -> None:
    """Mistakes arrive as the SDK's own exception classes."""
    with _openai(base_url) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "x"}])
        assert missing.value.code == "model_not_found"
        assert missing.value.param == "model"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("no-such-model")
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model=model, messages=[{"role": "user", "content": "x"}], temperature=-1)
        assert bad.value.param == "temperature"
        assert bad.value.type == "invalid_request_error"


def llm_lists_models(base_url: str, model: str, folder: Path) -> None:
    assert f"lmstudio/{model}" in _llm(base_url, folder, "models", "list")


def llm_chats(base_url: str, model: str, folder: Path, *, stream: bool) -> str:
    """`llm` with its `llm-lmstudio` plugin, which loads the model first; the answer's text."""
    options = [] if stream else ["--no-stream"]
    return _llm(base_url, folder, "-m", f"lmstudio/{model}", "-o", "max_tokens", "24", *options, "add two numbers")


def _openai(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", max_retries=0, timeout=120)


def _llm(base_url: str, folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "LMSTUDIO_API_BASE": base_url, "LLM_USER_PATH": str(folder), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "LMSTUDIO ERROR" not in done.stderr, done.stderr
    return done.stdout
