"""Write releases as a registry file."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paceline.types import Release


def registry_value(releases: Iterable[Release]) -> dict[str, Any]:
    """What `read_registry` reads as `releases`, as JSON values; fields with their default are left out.

    The schema version is the oldest one that has every field, so that whoever could read it still can.
    """
    releases = list(releases)
    sized = any(p.size for r in releases for p in (*r.recipe.packages, *r.recipe.build_packages))
    return {"schema_version": 2 if sized else 1, "releases": [_plain(release) for release in releases]}


def registry_text(releases: Iterable[Release]) -> str:
    """The same as the text of a file, one package a line, so that a change of a lock reads as one."""
    packages: list[str] = []

    def fold(value: Any) -> Any:
        if isinstance(value, dict) and {"name", "version"} <= value.keys():
            packages.append(json.dumps(value))
            return f"\0{len(packages) - 1}\0"
        if isinstance(value, dict):
            return {key: fold(item) for key, item in value.items()}
        return [fold(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(fold(registry_value(releases)), indent=1, ensure_ascii=False)
    return re.sub(r'"\\u0000(\d+)\\u0000"', lambda place: packages[int(place[1])], text) + "\n"


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        own = [f for f in fields(value) if f.compare]  # the others say nothing of what it is
        return {f.name: _plain(item) for f in own if (item := getattr(value, f.name)) != _default(f)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _default(field: Any) -> Any:
    if field.name == "packages":  # a recipe always says what it holds, nothing included
        return MISSING
    return field.default if field.default_factory is MISSING else field.default_factory()
