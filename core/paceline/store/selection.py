"""What is selected, what was selected before, what worked, and what the user wants left alone. Pure values.

`selection.json` holds one Selection. Version 3 of its schema, with everything but `formats` and `models` optional:

    {"schema_version": 3,
     "formats":   {"gguf": "llama.cpp-linux-x86_64-cpu@0.3.36"},   which runtime serves a model format
     "models":    {"some-model": "..."},                           the models that the user gave their own
     "stand_ins": {"other-model": {"runtime": "...",               serves the model while what is selected for it is
                                   "instead_of": "...",            this, which did not load it
                                   "format": "gguf", "reason": "...", "at": "2026-01-31T12:00:00+00:00"}},
     "previous":  {"gguf": ["...", ...]},                          served the format before, newest first
     "worked":    {"gguf": ["...", ...]},                          loaded a model of the format, newest first
     "loaded":    {"some-model": "..."},                           loaded the model last; models in that order
     "pins":      ["..."],                                         updates and clean-up leave them
     "holds":     {"...": {"reason": "...", "at": "...",           never chosen automatically; both may be null
                           "until_selected": true}}}               what a rollback left; optional, false without it

Version 2 had `holds` as a list and neither `stand_ins` nor `loaded`, version 1 had `formats` and `models` alone. Both
are read as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from paceline.versions import is_newer

V = TypeVar("V")

SCHEMA_VERSION = 3
HISTORY = 8
"""So many earlier selections of a format are remembered, and twice as many that worked."""
MODELS = 1000
"""Of so many models it is remembered what loaded them last."""


@dataclass(frozen=True)
class Hold:
    """Why a version is never chosen automatically, and since when; None where nobody said."""

    reason: str | None = None
    at: datetime | None = None
    until_selected: bool = False
    """Whether it ends when somebody selects the version, as what a rollback left is held."""


@dataclass(frozen=True)
class StandIn:
    """A runtime that serves one model while `instead_of`, which did not load it, is selected for that model."""

    runtime: str
    instead_of: str
    format: str
    reason: str
    at: datetime


@dataclass(frozen=True)
class Selection:
    """Runtime ids, installed or not, by model format and by model id."""

    formats: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    """The models that the user gave a runtime of their own."""
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    """By model, what was found to load it where something selected did not; see `stand_in` for those in force."""
    previous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What served a format before, newest first, without what serves it now."""
    worked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What loaded a model of a format here, newest first."""
    loaded: Mapping[str, str] = field(default_factory=dict)
    """What loaded a model last, by model; the model that was loaded by another than before comes last."""
    pins: tuple[str, ...] = ()
    """Updates and clean-up leave these alone."""
    holds: Mapping[str, Hold] = field(default_factory=dict)
    """These are never chosen automatically, installed or not."""

    def formats_of(self, runtime_id: str) -> tuple[str, ...]:
        return tuple(sorted(f for f, selected in self.formats.items() if selected == runtime_id))

    def models_of(self, runtime_id: str) -> tuple[str, ...]:
        """The models that it serves whatever serves the others of their format, stand-ins included."""
        stand_ins = {model for model, found in self.stand_ins_in_force().items() if found.runtime == runtime_id}
        return tuple(sorted({m for m, selected in self.models.items() if selected == runtime_id} | stand_ins))

    def ids(self) -> set[str]:
        """Every runtime that serves a format or a model."""
        stand_ins = (found.runtime for found in self.stand_ins_in_force().values())
        return {*self.formats.values(), *self.models.values(), *stand_ins}

    def for_model(self, model_format: str, model_id: str | None) -> tuple[str, ...]:
        """What should serve a model, the first of these that is installed."""
        if model_id is None:
            return tuple(filter(None, (self.formats.get(model_format),)))
        found = self.stand_in(model_id)
        ids = (found.runtime if found else None, self.models.get(model_id), self.formats.get(model_format))
        return tuple(filter(None, ids))

    def stand_in(self, model_id: str) -> StandIn | None:
        """What serves a model because what is selected for it did not load it."""
        found = self.stand_ins.get(model_id)
        if found is None:
            return None
        selected = self.models.get(model_id) or self.formats.get(found.format)
        return found if selected == found.instead_of else None

    def stand_ins_in_force(self) -> dict[str, StandIn]:
        return {model: found for model in self.stand_ins if (found := self.stand_in(model)) is not None}

    def last_good(self, model_format: str, among: Iterable[str]) -> str | None:
        """The newest earlier selection of a format that worked, is one of `among` and is not held.

        Where none has worked, the newest that may: it was tried when it was installed, and served no model since.
        """
        usable, worked = set(among) - set(self.holds), self.worked.get(model_format, ())
        earlier = [r for r in self.previous.get(model_format, ()) if r in usable]
        return next((r for r in earlier if r in worked), next(iter(earlier), None))

    def to_hold(self, model_format: str, runtime_id: str) -> str | None:
        """What has to be held after a return to an earlier selection, lest it is chosen again automatically.

        That is what serves the format now, where it is a newer version of what is returned to; None where it is not, or
        is held already.
        """
        left = self.formats.get(model_format)
        if left is None or left in self.holds:
            return None
        (name, _, version), (other, _, returned_to) = left.rpartition("@"), runtime_id.rpartition("@")
        return left if name == other and is_newer(version, returned_to) else None

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

    def with_loaded(self, model_id: str, runtime_id: str) -> Selection:
        known = {m: r for m, r in self.loaded.items() if m != model_id} | {model_id: runtime_id}
        return replace(self, loaded=dict(list(known.items())[-MODELS:]))

    def with_model(self, model_id: str, runtime_id: str | None) -> Selection:
        """Give a model a runtime of its own, or None to let its format's serve it again; no other stands in for it."""
        models = _without(self.models, model_id) | ({model_id: runtime_id} if runtime_id else {})
        return replace(self, models=models, stand_ins=_without(self.stand_ins, model_id))

    def with_stand_in(self, model_id: str, found: StandIn) -> Selection:
        return replace(self, stand_ins={**self.stand_ins, model_id: found})

    def with_hold(self, release_id: str, hold: Hold) -> Selection:
        """Hold a version. One that is held already keeps its reason, unless `hold` has one, and is held as long."""
        before = self.holds.get(release_id)
        if before is not None and hold.reason is None:
            hold = replace(before, until_selected=before.until_selected and hold.until_selected)
        return replace(self, holds={**self.holds, release_id: hold})

    def without_hold(self, release_id: str) -> Selection:
        return replace(self, holds=_without(self.holds, release_id))

    def chosen_again(self, release_id: str) -> Selection:
        """End a hold that is meant to last until somebody selects the version."""
        held = self.holds.get(release_id)
        return self.without_hold(release_id) if held is not None and held.until_selected else self

    def with_pin(self, runtime_id: str) -> Selection:
        return self if runtime_id in self.pins else replace(self, pins=(*self.pins, runtime_id))

    def without_pin(self, runtime_id: str) -> Selection:
        return replace(self, pins=tuple(p for p in self.pins if p != runtime_id))

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

        return replace(
            self,
            formats={k: v for k, v in self.formats.items() if v != runtime_id},
            models={k: v for k, v in self.models.items() if v != runtime_id},
            stand_ins={k: v for k, v in self.stand_ins.items() if runtime_id not in (v.runtime, v.instead_of)},
            previous=rest(self.previous),
            worked=rest(self.worked),
            loaded={k: v for k, v in self.loaded.items() if v != runtime_id},
            pins=tuple(p for p in self.pins if p != runtime_id),
        )


def from_json(data: Mapping[str, Any]) -> Selection:
    """Read what `to_json` wrote, or an older version of it. Raises ValueError or KeyError that says what is wrong."""
    version = data.get("schema_version")
    if version not in range(1, SCHEMA_VERSION + 1):
        raise ValueError(f"schema_version {version!r} is not {SCHEMA_VERSION}")
    return Selection(
        formats=_ids(data["formats"]),
        models=_ids(data.get("models", {})),
        stand_ins={model: _stand_in(found) for model, found in _objects(data.get("stand_ins", {})).items()},
        previous=_id_lists(data.get("previous", {})),
        worked=_id_lists(data.get("worked", {})),
        loaded=_ids(data.get("loaded", {})),
        pins=_id_list(data.get("pins", [])),
        holds=_holds(data.get("holds", {})),
    )


def to_json(selection: Selection) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "formats": dict(selection.formats),
        "models": dict(selection.models),
        "stand_ins": {model: describe_stand_in(found) for model, found in selection.stand_ins.items()},
        "previous": {f: list(ids) for f, ids in selection.previous.items() if ids},
        "worked": {f: list(ids) for f, ids in selection.worked.items() if ids},
        "loaded": dict(selection.loaded),
        "pins": list(selection.pins),
        "holds": {release: describe_hold(hold) for release, hold in selection.holds.items()},
    }


def describe_stand_in(found: StandIn) -> dict[str, Any]:
    """As JSON."""
    return {
        "runtime": found.runtime,
        "instead_of": found.instead_of,
        "format": found.format,
        "reason": found.reason,
        "at": found.at.isoformat(timespec="seconds"),
    }


def describe_hold(hold: Hold) -> dict[str, Any]:
    """As JSON."""
    return {
        "reason": hold.reason,
        "at": hold.at.isoformat(timespec="seconds") if hold.at is not None else None,
        "until_selected": hold.until_selected,
    }


def _stand_in(value: Mapping[str, Any]) -> StandIn:
    names = ("runtime", "instead_of", "format", "reason")
    runtime, instead_of, model_format, reason = (_text(value[name], name) for name in names)
    return StandIn(runtime, instead_of, model_format, reason, _moment(value["at"]))


def _holds(value: Any) -> dict[str, Hold]:
    if isinstance(value, list):  # as version 2 wrote them
        return dict.fromkeys(_id_list(value), Hold())
    found = {}
    for release, hold in _objects(value).items():
        reason, at = hold.get("reason"), hold.get("at")
        found[release] = Hold(
            _text(reason, "reason") if reason is not None else None,
            _moment(at) if at is not None else None,
            hold.get("until_selected") is True,
        )
    return found


def _moment(value: Any) -> datetime:
    return datetime.fromisoformat(_text(value, "at")).astimezone(UTC)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text as `{name}`, found {value!r}")
    return value


def _objects(value: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
        raise ValueError(f"expected a map of objects, found {value!r}")
    return value


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


def _without(known: Mapping[str, V], key: str) -> dict[str, V]:
    return {k: v for k, v in known.items() if k != key}
