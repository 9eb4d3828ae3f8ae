"""A small SQLite file that may vanish, break or be locked at any time: then it is rebuilt, or not used.

Nothing here raises. What is in it can always be made again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_BUSY_S = 2.0


class Database:
    """One table in one file. `schema` is its CREATE TABLE IF NOT EXISTS statement."""

    def __init__(self, file: Path, schema: str) -> None:
        self._file = file
        self._schema = schema

    def select(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows, or none if they cannot be had."""
        if not self._file.exists():
            return []
        rows: list[tuple[Any, ...]] = []
        self._attempt(lambda connection: rows.extend(connection.execute(query, parameters)))
        return rows

    def write(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run the statement for every row, all or none."""
        kept = list(rows)
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
        self._attempt(lambda connection: connection.executemany(statement, kept))

    def _attempt(self, action: Any) -> None:
        for last in (False, True):
            try:
                with contextlib.closing(sqlite3.connect(self._file, timeout=_BUSY_S)) as connection, connection:
                    # A power cut may break the file; it is a cache.
                    connection.execute("PRAGMA synchronous = OFF")
                    connection.execute(self._schema)
                    action(connection)
                return
            except sqlite3.Error as error:
                if last or not _is_broken(error):
                    return
                with contextlib.suppress(OSError):
                    self._file.unlink()


def _is_broken(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, rather than a lock, a permission or a full disk."""
    if isinstance(error, sqlite3.OperationalError):
        return any(words in str(error) for words in ("no such", "has no column", "malformed"))
    return isinstance(error, sqlite3.DatabaseError)
