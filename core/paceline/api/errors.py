"""Every error body of the API is made here: OpenAI's `{"error": {"message", "type", "param", "code"}}`.

Routes and the rooms below raise; nothing else in `paceline.api` writes an error. On /api/v1 the field `type` has
LM Studio's values instead of OpenAI's.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from paceline import errors

LOG_TAIL_CHARS = 2000
RETRY_AFTER_S = 1
"""When an overloaded server may be asked again: the queue moves with every answer that ends."""

log = logging.getLogger(__name__)


class ApiError(Exception):
    """An answer other than success. `message` is one or two sentences; `param` is the request field it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        type: str = "invalid_request_error",
        log_tail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.type = type
        self.log_tail = log_tail

    @property
    def headers(self) -> dict[str, str]:
        """What the answer's head says besides."""
        if self.status == 429:
            return {"Retry-After": str(RETRY_AFTER_S)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self, path: str = "") -> dict[str, Any]:
        """As JSON. `path` is the request's, because /api/v1 names types otherwise."""
        kind = _lmstudio_type(self) if path.startswith("/api/v1/") else self.type
        error: dict[str, Any] = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        if self.log_tail is not None:
            error["log_tail"] = self.log_tail
        return {"error": error}


def install(app: FastAPI) -> None:
    """Make `app` answer every exception in this shape."""
    app.add_exception_handler(ApiError, _handle)
    app.add_exception_handler(errors.PacelineError, _handle)
    app.add_exception_handler(HTTPException, _handle)
    app.add_exception_handler(Exception, _handle)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of `error`. An exception nobody meant to raise is logged and told as `internal_error`."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, errors.PacelineError):
        return _from_paceline(error)
    log.error("unexpected exception while answering a request", exc_info=error)
    return ApiError(
        500,
        f"Paceline made a mistake ({type(error).__name__}); its log has the details.",
        code="internal_error",
        type="internal_error",
    )


# The first class that fits decides.
_STATUS: tuple[tuple[type[errors.PacelineError], int, str], ...] = (
    (errors.UsageError, 400, "invalid_request_error"),
    (errors.RequestError, 400, "invalid_request_error"),
    (errors.TemplateError, 400, "invalid_request_error"),
    (errors.PairError, 400, "invalid_request_error"),
    # Not a 5xx: clients repeat those by themselves, and the way out is another request.
    (errors.DoesNotFitError, 400, "invalid_request_error"),
    (errors.AmbiguousError, 400, "invalid_request_error"),
    (errors.InUseError, 409, "invalid_request_error"),
    (errors.OverloadedError, 429, "rate_limit_error"),
    # Models are looked up before anything else is done, so what is missing here is a runtime.
    (errors.NotFoundError, 503, "engine_error"),
    (errors.PluginError, 503, "engine_error"),
    (errors.WorkerError, 500, "engine_error"),
    (errors.PacelineError, 500, "engine_error"),
)


def _from_paceline(error: errors.PacelineError) -> ApiError:
    status, kind = next((s, k) for cls, s, k in _STATUS if isinstance(error, cls))
    tail = error.log_tail[-LOG_TAIL_CHARS:] if isinstance(error, errors.WorkerDied) else None
    return ApiError(status, _with_help(error), code=error.code, param=error.param, type=kind, log_tail=tail)


def _with_help(error: errors.PacelineError) -> str:
    return f"{error.message.rstrip('.')}. Help: {error.help}" if error.help else error.message


async def _handle(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        told = _from_http(request, error)
    else:
        told = as_api_error(error)
    headers = error.headers if isinstance(error, HTTPException) else told.headers
    return JSONResponse(told.body(request.url.path), told.status, headers=headers)


def _from_http(request: Request, error: HTTPException) -> ApiError:
    route = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return ApiError(404, f"There is no {route} here. There are {_paths(request.app)}.", code="unknown_url")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return ApiError(405, f"{route} is not allowed; use {allowed}.", code="method_not_allowed")
    return ApiError(error.status_code, str(error.detail), code="invalid_request")


def _paths(app: FastAPI) -> str:
    """The paths that `app` answers, without those whose parts a client has to fill in."""
    return ", ".join(path for path in app.openapi()["paths"] if "{" not in path)


def _lmstudio_type(error: ApiError) -> str:
    if error.code == "model_not_found":
        return "model_not_found"
    return "invalid_request" if error.status < 500 else "internal_error"
