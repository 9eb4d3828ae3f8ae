"""Remembers what was read of each model, by the size and time of all its files and the reader's version."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from paceline.errors import ModelFileError
from paceline.library.database import Database
from paceline.types import ModelFacts, ModelKind
from paceline.untrusted_json import parse

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS facts "
    "(path TEXT, format TEXT, stamp TEXT NOT NULL, facts TEXT, error TEXT, help TEXT, PRIMARY KEY (path, format))"
)
_SELECT = "SELECT path, format, stamp, facts, error, help FROM facts"
_INSERT = "INSERT OR REPLACE INTO facts (path, format, stamp, facts, error, help) VALUES (?, ?, ?, ?, ?, ?)"
_DELETE = "DELETE FROM facts WHERE path = ? AND format = ?"
_FIELDS = tuple(f.name for f in fields(ModelFacts))


@dataclass(frozen=True)
class _Row:
    stamp: str
    facts: str | None
    error: str | None
    help: str | None


class FactsCache:
    """A snapshot of the file at construction; what is remembered afterwards is written through."""

    def __init__(self, file: Path) -> None:
        self._database = Database(file, _SCHEMA)
        self._rows = {(row[0], row[1]): _Row(*row[2:]) for row in self._database.select(_SELECT)}

    def recall(self, path: Path, model_format: str, stamp: str) -> ModelFacts | ModelFileError | None:
        """What reading this path gave when its files had this stamp; None when nobody knows."""
        row = self._rows.get((str(path), model_format))
        if row is None or row.stamp != stamp:
            return None
        if row.facts is None:
            return ModelFileError(row.error, help=row.help) if isinstance(row.error, str) else None
        try:
            return _facts(parse(row.facts))
        except (ValueError, TypeError, KeyError):
            return None

    def remember(self, path: Path, model_format: str, stamp: str, outcome: ModelFacts | ModelFileError) -> None:
        if isinstance(outcome, ModelFileError):
            row = _Row(stamp, None, outcome.message, outcome.help)
        else:
            row = _Row(stamp, json.dumps(_plain(outcome)), None, None)
        self._rows[str(path), model_format] = row
        self._database.write(_INSERT, [(str(path), model_format, row.stamp, row.facts, row.error, row.help)])

    def forget_vanished(self, found: set[tuple[str, str]]) -> None:
        """Drop the rows of models that are not `found` and no longer exist; another library may hold the others."""
        # os.path.exists, because a Path for every stale row costs more than the question.
        gone = [key for key in self._rows.keys() - found if not os.path.exists(key[0])]  # noqa: PTH110
        if gone:
            self._database.write(_DELETE, gone)
            for key in gone:
                del self._rows[key]


def _plain(facts: ModelFacts) -> dict[str, Any]:
    plain = {name: getattr(facts, name) for name in _FIELDS}
    return {**plain, "pairing": dict(facts.pairing)}


def _facts(plain: Mapping[str, Any]) -> ModelFacts:
    kind, capabilities = ModelKind(plain["kind"]), tuple(plain["capabilities"])
    return ModelFacts(**{**plain, "kind": kind, "capabilities": capabilities})
