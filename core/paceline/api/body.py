"""From the bytes of a request to checked JSON, or a 4xx that says what is wrong with them."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from paceline.api.errors import ApiError
from paceline.untrusted_json import TooDeep, parse

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64

T = TypeVar("T", bound="Schema")


class Schema(BaseModel):
    """The base of every request. Unknown fields are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


async def read_object(request: Request, limit: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """The JSON object in the body of `request`: bounded in size and depth, only finite numbers, only whole text."""
    content_type = request.headers.get("content-type", "")
    essence = content_type.partition(";")[0].strip().lower()
    if essence != "application/json" and not (essence.startswith("application/") and essence.endswith("+json")):
        raise ApiError(
            415,
            f"The body must be sent with `Content-Type: application/json`, not {content_type[:100] or 'without one'}.",
            code="unsupported_media_type",
        )
    data = await _read(request, limit)
    try:
        value = parse(data)
    except TooDeep:
        raise _bad_json(f"nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        # Besides syntax: bytes that are no UTF-8, and integers longer than Python converts.
        raise _bad_json(str(error)) from None
    if not isinstance(value, dict):
        raise _bad_json("not an object")
    _check(value)
    return value


def validate(schema: type[T], data: dict[str, Any]) -> T:
    """`data` as `schema`, or a 400 that names the first field that is wrong."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    param = field_path(first["loc"])
    if first["type"] == "missing":
        raise ApiError(400, f"The field {param} is missing.", code="missing_required_parameter", param=param)
    wrong_type = first["type"].endswith("_type") or first["type"] in ("int_from_float", "string_unicode")
    code = "invalid_type" if wrong_type else "invalid_value"
    raise ApiError(400, f"{param}: {first['msg']}.", code=code, param=param)


def field_path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`, at most 200 characters of it."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step[:200]}" if path else step[:200]
    return path[:200]


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and len(announced) < 19 and int(announced) > limit:
        raise _too_large(limit)
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        # Nobody is left to read this; it only ends the request in good order.
        raise ApiError(400, "The client went away before its request was complete.", code="disconnected") from None
    return bytes(data)


def _check(root: dict[str, Any]) -> None:
    """Refuse what JSON can say and no model can be given, wherever it stands in the body."""
    todo: list[tuple[Any, tuple[int | str, ...]]] = [(root, ())]
    while todo:
        value, location = todo.pop()
        if isinstance(value, str):
            _check_text(value, location)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise _bad_value("the number is not finite", location)
        elif isinstance(value, (dict, list)):
            if len(location) >= MAX_DEPTH:
                raise _bad_value(f"nested deeper than {MAX_DEPTH} levels", location[:1])
            if isinstance(value, dict):
                for key in value:
                    _check_text(key, location)
                todo.extend((item, (*location, key)) for key, item in value.items())
            else:
                todo.extend((item, (*location, index)) for index, item in enumerate(value))


def _check_text(text: str, location: tuple[int | str, ...]) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _bad_value("the text has half of a surrogate pair (\\ud800 to \\udfff)", location) from None


def _bad_json(what: str) -> ApiError:
    return ApiError(400, f"The body is not a JSON object: {what}.", code="invalid_json")


def _bad_value(what: str, location: tuple[int | str, ...]) -> ApiError:
    param = field_path(location)
    return ApiError(400, f"{param or 'The body'}: {what}.", code="invalid_value", param=param or None)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
