"""Server-sent events as OpenAI's API uses them: `data: <json>` and a blank line; `data: [DONE]` at the end.

Under /api/v1 events have names instead of an end mark, as in LM Studio's: `event: <name>` before their data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
DONE = b"data: [DONE]\n\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + dumps(payload) + b"\n\n"


def named_event(name: str, payload: Mapping[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\n" + event(payload)


def dumps(value: Any) -> bytes:
    """Compact JSON in UTF-8. Half a surrogate pair, which has no UTF-8, becomes a question mark."""
    return _encode(value).encode("utf-8", "replace")


class TextEvents:
    """Events that differ in one text: everything around it is encoded once, so that a token costs microseconds."""

    def __init__(self, payload: Mapping[str, Any], place: str) -> None:
        """`payload` contains the string `place` exactly once, as a value."""
        self._before, self._after = event(payload).split(dumps(place))

    def event(self, text: str) -> bytes:
        return self._before + dumps(text) + self._after
