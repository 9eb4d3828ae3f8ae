"""Error answers, and the check of a parameter that leads to most of them."""

from __future__ import annotations

from typing import Any


class Refusal(Exception):
    """An error answer."""

    def __init__(self, code: int, message: str, **data: Any) -> None:
        super().__init__(message)
        self._code, self._data = code, data

    @classmethod
    def of(cls, message: str, kind: str, **data: Any) -> Refusal:
        return cls(-32602 if kind == "invalid_request" else -32000, message, kind=kind, **data)

    def frame(self) -> dict[str, Any]:
        frame: dict[str, Any] = {"code": self._code, "message": str(self)}
        return frame | {"data": self._data} if self._data else frame


def number(params: dict[str, Any], name: str, default: Any, *, at_least: int, at_most: int | None = None) -> Any:
    value = params.get(name)
    if value is None:
        return default
    if type(value) is not int or value < at_least or (at_most is not None and value > at_most):
        bounds = f"from {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise Refusal.of(f"`{name}` is {value!r}, not an integer {bounds}", "invalid_request", param=name)
    return value
