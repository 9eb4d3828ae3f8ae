"""From the bytes of a request to checked JSON, or a 4xx that says what is wrong with them."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from paceline.api.errors import ApiError
from paceline.untrusted_json import TooDeep, TooMany, bound, parse

MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64
MAX_VALUES = (1 << 20) + (1 << 16)
"""Values and names in a body. The most of any request are the 2^20 tokens of a text that is put together; the rest is
for what stands beside them, such as a chat's 10,000 messages or biases."""
MAX_CONTAINERS = 1 << 17
"""Objects and lists in a body: ten for each of 10,000 messages, and more. Each takes the memory of many values."""
INLINE_BYTES = 32 * 1024
"""Larger bodies are checked on a thread, so that streams go on meanwhile. For smaller ones the way there costs more."""

_checker = ThreadPoolExecutor(1, thread_name_prefix="paceline-body")
"""One thread for all large bodies: however many come, the event loop shares the interpreter with one of them."""

T = TypeVar("T", bound="Schema")


class Schema(BaseModel):
    """The base of every request. Unknown fields are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


async def read(request: Request, schema: type[T], limit: int = MAX_BODY_BYTES) -> T:
    """The body of `request`, at most `limit` bytes, as `schema`. Raises ApiError, a 4xx, for anything else."""
    content_type = request.headers.get("content-type", "")
    essence = content_type.partition(";")[0].strip().lower()
    if essence != "application/json" and not (essence.startswith("application/") and essence.endswith("+json")):
        raise ApiError(
            415,
            f"The body must be sent with `Content-Type: application/json`, not {content_type[:100] or 'without one'}.",
            code="unsupported_media_type",
        )
    data = await _bytes(request, limit)
    if len(data) <= INLINE_BYTES:
        return _request(data, schema)
    return await asyncio.get_running_loop().run_in_executor(_checker, _request, data, schema)


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`: bounded in depth and number of values, only finite numbers, only whole text."""
    try:
        bound(data, values=MAX_VALUES, containers=MAX_CONTAINERS)
        # A function for each number lets other threads run between two of them.
        number = {"parse_int": _int, "parse_float": _float} if len(data) > INLINE_BYTES else {}
        value = parse(data.decode("utf-8-sig"), **number)
    except TooMany as error:
        raise ApiError(400, f"The body {error}; send less at once.", code="invalid_value") from None
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


def _request(data: bytes, schema: type[T]) -> T:
    return validate(schema, read_object(data))


def _int(digits: str) -> int:
    return int(digits)


def _float(digits: str) -> float:
    return float(digits)


async def _bytes(request: Request, limit: int) -> bytes:
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
    todo: list[tuple[Any, _Place | None, int]] = [(root, None, 0)]
    while todo:
        container, place, depth = todo.pop()
        if depth >= MAX_DEPTH:
            raise _bad_value(f"nested deeper than {MAX_DEPTH} levels", _location(place)[:1])
        named = isinstance(container, dict)
        if named and any(_is_broken(name) for name in container):
            raise _bad_value(_BROKEN, _location(place))
        for step, value in container.items() if named else enumerate(container):
            kind = type(value)
            if kind is str:
                if _is_broken(value):
                    raise _bad_value(_BROKEN, _location((place, step)))
            elif kind is float:
                if not math.isfinite(value):
                    raise _bad_value("the number is not finite", _location((place, step)))
            elif kind is dict or kind is list:
                todo.append((value, (place, step), depth + 1))


_Place: TypeAlias = "tuple[_Place | None, int | str]"
"""Where a value stands: the place of what holds it, and its name or number in there."""

_BROKEN = "the text has half of a surrogate pair (\\ud800 to \\udfff)"


def _location(place: _Place | None) -> tuple[int | str, ...]:
    steps: list[int | str] = []
    while place is not None:
        place, step = place
        steps.append(step)
    return tuple(reversed(steps))


def _is_broken(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _bad_json(what: str) -> ApiError:
    return ApiError(400, f"The body is not a JSON object: {what}.", code="invalid_json")


def _bad_value(what: str, location: tuple[int | str, ...]) -> ApiError:
    param = field_path(location)
    return ApiError(400, f"{param or 'The body'}: {what}.", code="invalid_value", param=param or None)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
