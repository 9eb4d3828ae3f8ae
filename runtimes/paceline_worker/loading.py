"""What a request to load a model asks for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline_worker.backend import LoadRequest
from paceline_worker.protocol import Fault


def parse_load(params: Mapping[str, Any]) -> tuple[str, LoadRequest, int | None]:
    """The role, what the engine is to load, and how many requests may wait (None: as many as usual).

    The engine's own options are for it to check. Raises Fault with the field that is wrong.
    """
    role = parse_role(params)
    path = params.get("path")
    if not isinstance(path, str):
        raise Fault.invalid("path", "path must be a string")
    options = params.get("options") or {}
    if not isinstance(options, dict):
        raise Fault.invalid("options", f"options must be an object, not {options!r}")
    queue = _queue(options) if role == "main" else None
    request = LoadRequest(
        path=path,
        context_length=_positive(params, "context_length"),
        threads=_positive(params, "threads"),
        options={name: value for name, value in options.items() if role != "main" or name != "queue"},
    )
    return role, request, queue


def parse_role(params: Mapping[str, Any]) -> str:
    """`main` or `draft`."""
    role = params.get("role")
    if role not in ("main", "draft"):
        raise Fault.invalid("role", f"role must be main or draft, not {role!r}")
    return str(role)


def _queue(options: Mapping[str, Any]) -> int | None:
    value = options.get("queue")
    if value is not None and (type(value) is not int or value < 0):
        raise Fault.invalid("options.queue", f"queue must be a whole number from 0, not {value!r}")
    return value


def _positive(params: Mapping[str, Any], name: str) -> int | None:
    value = params.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise Fault.invalid(name, f"{name} must be a positive whole number")
    return value
