"""What programs answered to the survey, remembered between processes in one small file.

An answer is kept with a key made of cheap facts about what it depends on, and asked for again when the key is another
one. A file that is damaged, or cannot be written, only means that everything is asked.
"""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Callable

FILE = "survey.json"
_SCHEMA_VERSION = 1


class Answers:
    """The answers remembered below `cache`; without a cache nothing is remembered, with `refresh` all is asked anew."""

    def __init__(self, cache: Path | None = None, *, refresh: bool = False) -> None:
        self._file = None if cache is None else cache / FILE
        self._refresh = refresh

    def get(self, name: str, key: str, ask: Callable[[], Any]) -> tuple[Any, str | None]:
        """The answer called `name`, and when it was given if it was remembered (`2026-01-31 12:00 UTC`).

        `ask` returns a JSON value, or None for a failure, which is not remembered.
        """
        known = self._read().get(name)
        if (
            not self._refresh
            and isinstance(known, dict)
            and known.get("key") == key
            and known.get("answer") is not None
        ):
            return known["answer"], str(known.get("asked_at"))
        answer = ask()
        if answer is not None:
            self._write(name, {"key": key, "asked_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "answer": answer})
        return answer, None

    def _read(self) -> dict[str, Any]:
        if self._file is None:
            return {}
        try:
            data = read_object(self._file)
        except (OSError, ValueError):
            return {}
        return data if data.get("schema_version") == _SCHEMA_VERSION else {}

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_name(f".{FILE}.{secrets.token_hex(4)}")
            try:
                with temporary.open("x", encoding="utf-8") as file:
                    json.dump({**self._read(), "schema_version": _SCHEMA_VERSION, name: entry}, file, indent=1)
                temporary.replace(self._file)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def stamp(path: str | Path | None) -> str:
    """What a file's identity is told by without reading it; `-` for one that is not here."""
    if path is None:
        return "-"
    try:
        status = os.stat(path)  # noqa: PTH116 - the path is often text
    except OSError:
        return "-"
    return f"{path} {status.st_size} {status.st_mtime_ns}"
