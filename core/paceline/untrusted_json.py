"""JSON that may be damaged or hostile, as it is read from files and other programs: what is wrong is a ValueError."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEEPEST = 200
"""So many brackets in brackets are read. Far more would end whoever walks through them in a RecursionError."""


class TooDeep(ValueError):
    """There are more brackets in brackets than `DEEPEST`."""

    def __init__(self) -> None:
        super().__init__("it is nested too deeply")


class TooMany(ValueError):
    """There is more in it than `bound` was to let through."""


def bound(data: bytes, *, values: int, containers: int) -> None:
    """Refuse JSON in UTF-8 with more values and names, or more objects and lists, before any of them takes memory.

    Raises TooMany. Data that is no JSON is counted up to where it ceases to be, or farther.
    """
    if _within(data, values, containers):
        return
    # What looks like JSON in a text is none. Without escapes, every second piece between quotes is a text.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') // 2 > values:
        raise TooMany(f"has more than {values} values and names")
    outside = b"".join(bare.split(b'"')[::2])
    if not _within(outside, values, containers):
        many = f"{containers} objects and lists" if _containers(outside) > containers else f"{values} values and names"
        raise TooMany(f"has more than {many}")


def parse(
    text: str | bytes,
    *,
    parse_int: Callable[[str], Any] | None = None,
    parse_float: Callable[[str], Any] | None = None,
) -> Any:
    """The value that `text` holds, in UTF-8 where it is bytes. Raises ValueError for whatever holds none.

    `parse_int` and `parse_float` are as in `json.loads`.
    """
    try:
        value = json.loads(text, parse_int=parse_int, parse_float=parse_float)
    except RecursionError:
        raise TooDeep from None
    if _is_deep(value):
        raise TooDeep
    return value


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises OSError, or ValueError for anything else."""
    try:
        data = parse(file.read_bytes())
    except TooDeep:
        raise ValueError(f"{file} is nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds no JSON object")
    return data


def _within(data: bytes, values: int, containers: int) -> bool:
    inside = _containers(data)
    # A container that is not empty holds one value more than commas; before each colon stands a name.
    return inside <= containers and data.count(b",") + data.count(b":") + inside < values


def _containers(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True
