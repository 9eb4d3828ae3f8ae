"""A library of small synthetic models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paceline.formats import builtin_formats
from paceline.library import Library, ModelFolder


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def add_model(models, write_gguf) -> Callable[..., Path]:
    """A function that puts a model into the models folder: `add_model("pub/repo/file.gguf", rows=8, tokens=[...])`."""

    def add(name: str, *, rows: int = 8, tokens: list[str] | None = None, **values: object) -> Path:
        defaults = {
            "general.architecture": "llama",
            "general.file_type": 1,
            "llama.context_length": 2048,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": tokens or [f"t{i}" for i in range(20)],
        }
        named = {key.replace("__", "."): value for key, value in values.items()}
        return write_gguf(models / name, {**defaults, **named}, [("token_embd.weight", (64, rows), 1)])

    return add


@pytest.fixture
def open_library(models, tmp_path) -> Callable[..., Library]:
    """A function that opens the library anew, as a new process would."""

    def open_anew(*folders: ModelFolder | Path) -> Library:
        return Library(builtin_formats(), folders or (models,), tmp_path / "cache" / "models.sqlite")

    return open_anew
