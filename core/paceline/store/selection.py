"""What is selected, what was selected before, what worked, and what the user wants left alone. Pure values.

`selection.json` holds one Selection. Version 2 of its schema, with everything but `formats` and `models` optional:

    {"schema_version": 2,
     "formats":  {"gguf": "llama.cpp-linux-x86_64-cpu@0.3.36"},    which runtime serves a model format
     "models":   {"some-model": "..."},                            the models that have their own
     "previous": {"gguf": ["...", ...]},                           served the format before, newest first
     "worked":   {"gguf": ["...", ...]},                           loaded a model of the format, newest first
     "pins":     ["..."],                                          updates and clean-up leave them
     "holds":    ["..."]}                                          never chosen automatically

Version 1 had `formats` and `models` alone and is read as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SCHEMA_VERSION = 2
HISTORY = 8
"""So many earlier selections of a format are remembered, and twice as many that worked."""


@dataclass(frozen=True)
class Selection:
    """Runtime ids, installed or not, by model format and by model id."""

    formats: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    previous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What served a format before, newest first, without what serves it now."""
    worked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What loaded a model of a format here, newest first."""
    pins: tuple[str, ...] = ()
    """Updates and clean-up leave these alone."""
    holds: tuple[str, ...] = ()
    """These are never chosen automatically, installed or not."""

    def formats_of(self, runtime_id: str) -> tuple[str, ...]:
        return tuple(sorted(f for f, selected in self.formats.items() if selected == runtime_id))

    def models_of(self, runtime_id: str) -> tuple[str, ...]:
        return tuple(sorted(m for m, selected in self.models.items() if selected == runtime_id))

    def uses(self, runtime_id: str) -> bool:
        return runtime_id in self.formats.values() or runtime_id in self.models.values()

    def last_good(self, model_format: str, among: Iterable[str]) -> str | None:
        """The newest earlier selection of a format that worked, is one of `among` and is not held."""
        worked = set(self.worked.get(model_format, ())) & set(among) - set(self.holds)
        return next((r for r in self.previous.get(model_format, ()) if r in worked), None)

    def with_format(self, model_format: str, runtime_id: str) -> Selection:
        """Let a runtime serve a format; what served it becomes the newest of the earlier ones."""
        current = self.formats.get(model_format)
        if current == runtime_id:
            return self
        earlier = (*((current,) if current else ()), *self.previous.get(model_format, ()))
        history = tuple(dict.fromkeys(r for r in earlier if r != runtime_id))[:HISTORY]
        return replace(
            self,
            formats={**self.formats, model_format: runtime_id},
            previous={**self.previous, model_format: history},
        )

    def rolled_back(self, model_format: str, runtime_id: str) -> Selection:
        """Return to an earlier selection; it and what came after it leave the history."""
        history = self.previous.get(model_format, ())
        earlier = history[history.index(runtime_id) + 1 :] if runtime_id in history else history
        return replace(
            self,
            formats={**self.formats, model_format: runtime_id},
            previous={**self.previous, model_format: earlier},
        )

    def with_worked(self, model_format: str, runtime_id: str) -> Selection:
        known = (runtime_id, *(r for r in self.worked.get(model_format, ()) if r != runtime_id))
        return replace(self, worked={**self.worked, model_format: known[: 2 * HISTORY]})

    def with_model(self, model_id: str, runtime_id: str | None) -> Selection:
        """Give a model a runtime of its own, or None to let its format's serve it again."""
        models = {m: r for m, r in self.models.items() if m != model_id}
        return replace(self, models=models | ({model_id: runtime_id} if runtime_id else {}))

    def without_format(self, model_format: str) -> Selection:
        """Let nothing serve a format; what served it can be returned to."""
        current = self.formats.get(model_format)
        if current is None:
            return self
        history = (current, *self.previous.get(model_format, ()))[:HISTORY]
        formats = {f: r for f, r in self.formats.items() if f != model_format}
        return replace(self, formats=formats, previous={**self.previous, model_format: history})

    def without(self, runtime_id: str) -> Selection:
        """Forget a runtime that is removed. A hold stays: it is meant for the version, installed or not."""

        def rest(lists: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
            return {key: kept for key, ids in lists.items() if (kept := tuple(r for r in ids if r != runtime_id))}

        return Selection(
            {k: v for k, v in self.formats.items() if v != runtime_id},
            {k: v for k, v in self.models.items() if v != runtime_id},
            rest(self.previous),
            rest(self.worked),
            tuple(p for p in self.pins if p != runtime_id),
            self.holds,
        )


def from_json(data: Mapping[str, Any]) -> Selection:
    """Read what `to_json` wrote, or version 1 of it. Raises ValueError or KeyError that says what is wrong."""
    version = data.get("schema_version")
    if version not in (1, SCHEMA_VERSION):
        raise ValueError(f"schema_version {version!r} is not {SCHEMA_VERSION}")
    return Selection(
        formats=_ids(data["formats"]),
        models=_ids(data.get("models", {})),
        previous=_id_lists(data.get("previous", {})),
        worked=_id_lists(data.get("worked", {})),
        pins=_id_list(data.get("pins", [])),
        holds=_id_list(data.get("holds", [])),
    )


def to_json(selection: Selection) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "formats": dict(selection.formats),
        "models": dict(selection.models),
        "previous": {f: list(ids) for f, ids in selection.previous.items() if ids},
        "worked": {f: list(ids) for f, ids in selection.worked.items() if ids},
        "pins": list(selection.pins),
        "holds": list(selection.holds),
    }


def _ids(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f"expected a map of runtime ids, found {value!r}")
    return value


def _id_lists(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a map of lists of runtime ids, found {value!r}")
    return {key: _id_list(ids) for key, ids in value.items()}


def _id_list(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"expected a list of runtime ids, found {value!r}")
    return tuple(value)
