"""The model format: `*.echo` files, one JSON object each."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from paceline import ModelFacts, ModelFileError, ModelFormat, ModelKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MAX_FILE_BYTES = 16 * 1024 * 1024
CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"


class EchoFormat(ModelFormat):
    name = "echo"

    def find(self, folder: Path) -> Iterable[Path]:
        return sorted(path for path in folder.rglob("*.echo") if path.is_file())

    def files(self, path: Path) -> Sequence[Path]:
        return (path,)

    def read(self, path: Path) -> ModelFacts:
        data = _read(path)
        vocabulary = _vocabulary(path, data)
        return ModelFacts(
            kind=ModelKind.LLM,
            size_bytes=path.stat().st_size,
            name=_typed(path, data, "name", str),
            arch="echo",
            parameters=_typed(path, data, "parameters", int),
            max_context_length=_typed(path, data, "context_length", int),
            chat_template=CHAT_TEMPLATE,
            pairing={"key": hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()},
        )


def read_vocabulary(path: Path) -> list[str]:
    """The strings that are one token each, in the order of their ids."""
    return _vocabulary(path, _read(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelFileError(f"{path} is larger than an echo model can be ({MAX_FILE_BYTES} bytes)")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}", help="an echo model is one JSON object") from error
    if not isinstance(data, dict):
        raise ModelFileError(f"{path} holds no JSON object", help="an echo model is one JSON object")
    return data


def _vocabulary(path: Path, data: dict[str, Any]) -> list[str]:
    words = data.get("vocabulary", [])
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise ModelFileError(f"{path}: `vocabulary` is no list of strings")
    return words


def _typed(path: Path, data: dict[str, Any], key: str, kind: type) -> Any:
    value = data.get(key)
    if value is not None and type(value) is not kind:
        raise ModelFileError(f"{path}: `{key}` is {value!r}, which is no {kind.__name__}")
    return value
