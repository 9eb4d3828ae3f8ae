"""Reading the `options` of a load: what the engine does not know or cannot mean is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from paceline_worker.protocol import Fault

_INT32 = 2**31 - 1


class Options:
    """The options one load was given. Every reader returns None for an option that is absent or null.

    Raises Fault (`invalid_request`, with `options.NAME` as its parameter) for an option outside `known` and for a
    value that an option cannot have.
    """

    def __init__(self, given: Mapping[str, Any], known: Sequence[str], whose: str) -> None:
        self._given = given
        for name in given:
            if name not in known:
                raise invalid(name, f"{whose} has no load option {name!r}; it has {', '.join(known) or 'none'}")

    def flag(self, name: str) -> bool | None:
        value = self._given.get(name)
        if value is not None and not isinstance(value, bool):
            raise invalid(name, f"{name} must be true or false, not {value!r}")
        return value

    def whole(self, name: str, *, least: int, most: int = _INT32) -> int | None:
        value = self._given.get(name)
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise invalid(name, f"{name} must be a whole number from {least} to {most}, not {value!r}")
        return value

    def one_of(self, name: str, choices: Sequence[str]) -> str | None:
        value = self._given.get(name)
        if value is not None and (not isinstance(value, str) or value not in choices):
            raise invalid(name, f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value

    def shares(self, name: str) -> tuple[float, ...] | None:
        """A list of proportions, not all of them 0."""
        value = self._given.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(is_finite(v) and v >= 0 for v in value) or not sum(value) > 0:
            raise invalid(name, f"{name} must be a list of numbers from 0 on, not all of them 0, not {value!r}")
        return tuple(float(v) for v in value)

    def objects(self, name: str) -> tuple[Mapping[str, Any], ...]:
        """A list of objects; empty when it is absent."""
        value = self._given.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise invalid(name, f"{name} must be a list of objects, not {value!r}")
        return tuple(value)


def invalid(option: str, message: str) -> Fault:
    return Fault.invalid(f"options.{option}", message)


def is_finite(value: object) -> bool:
    """Whether a JSON value is a number; what JSON cannot say but Python reads (NaN, Infinity) is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
