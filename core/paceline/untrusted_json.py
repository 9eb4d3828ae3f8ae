"""JSON that may be damaged or hostile, as it is read from files and other programs: what is wrong is a ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEEPEST = 200
"""So many brackets in brackets are read. Far more would end whoever walks through them in a RecursionError."""


class TooDeep(ValueError):
    """There are more brackets in brackets than `DEEPEST`."""

    def __init__(self) -> None:
        super().__init__("it is nested too deeply")


def parse(text: str | bytes) -> Any:
    """The value that `text` holds, in UTF-8 where it is bytes. Raises ValueError for whatever holds none."""
    try:
        value = json.loads(text)
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
