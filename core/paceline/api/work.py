"""What the routes have in common that manage what the server runs on: their errors, and long work that is followed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from paceline.api import sse
from paceline.api.body import Schema
from paceline.api.errors import ApiError
from paceline.api.operations import Operation, Operations, State
from paceline.api.streams import send_body, send_end, send_start, until_client_leaves
from paceline.errors import NotFoundError, PacelineError

T = TypeVar("T")
Query = Annotated[str, Field(min_length=1, max_length=200)]
Channel = Literal["stable", "beta", "nightly"]
Days = Annotated[float, Field(ge=0, le=100_000)]


class Change(Schema):
    """The base of requests that change something: a field they do not know is an error, not ignored."""

    model_config = ConfigDict(extra="forbid")


class Long(Change):
    """Long work; `background` answers at once and is not ended by the client's leaving."""

    background: bool | None = None


async def done(work: Callable[[], T], param: str = "query") -> T:
    """The result of `work`, done in a thread, with what `refusing` makes of its errors."""
    with refusing(param):
        return await asyncio.to_thread(work)


@contextmanager
def refusing(param: str = "query") -> Iterator[None]:
    """Answer with the errors of the block. What does not exist is a 404 here, and about the field `param`."""
    try:
        yield
    except PacelineError as error:
        if error.code not in _STATUS:
            raise
        told = error.describe()
        if isinstance(error, NotFoundError):
            told["param"] = param
        raise refusal(told) from error


def follow(operations: Operations, do: str, wanted: Long, **arguments: Any) -> Response:
    """Begin an errand; the answer is its events until its end, or at once a 202 with what began."""
    operation = operations.start(do, arguments)
    if wanted.background:
        return JSONResponse(operation.describe(), 202)
    return _Followed(operations, operation)


def find_operation(operations: Operations, id: str) -> Operation:
    """The operation of that id, or a 404."""
    try:
        return operations.get(id)
    except NotFoundError as error:
        raise ApiError(404, error.message, code="not_found", param="id") from error


def refusal(error: Mapping[str, Any]) -> ApiError:
    """What a client is told of an error, which is given as JSON."""
    message = f"{error['message'].rstrip('.')}. Help: {error['help']}" if error["help"] else error["message"]
    return ApiError(_STATUS.get(error["code"], 500), message, code=error["code"], param=error["param"])


_STATUS = {
    "not_found": 404,
    "ambiguous": 400,
    "invalid_request": 400,
    "incompatible": 400,
    "bad_archive": 400,
    "install_failed": 409,
    "unpinned_packages": 409,
    "plugin_error": 409,
    "registry_error": 409,
    "in_use": 409,
    "offline": 409,
}


class _Followed(Response):
    """An operation's events until its end. A client that goes away cancels it."""

    def __init__(self, operations: Operations, operation: Operation) -> None:
        super().__init__()
        self._operations, self._operation = operations, operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_client_leaves(receive, self._relay(send))
        finally:
            await self._operations.cancel(self._operation)

    async def _relay(self, send: Send) -> None:
        # The headers wait for the first progress: what is refused before it gets an HTTP status of its own.
        operation, told, started = self._operation, None, False
        async for _ in operation.changes():
            if not started and (operation.progress or operation.state is State.WAITING):
                await send_start(send, 200, sse.HEADERS)
                await send_body(send, sse.named_event("operation.start", operation.describe()))
                started = True
            now = {**(operation.progress or {}), "paused": operation.paused}
            if operation.progress and now != told:
                told = now
                await send_body(send, sse.named_event("operation.progress", now))
        if not started:
            if operation.error is not None:
                raise refusal(operation.error)
            await send_start(send, 200, sse.HEADERS)
            await send_body(send, sse.named_event("operation.start", operation.describe()))
        if operation.error is not None:
            await send_body(send, sse.named_event("error", refusal(operation.error).body("/api/v1/")))
        else:
            await send_body(send, sse.named_event("operation.end", operation.describe()))
        await send_end(send)
