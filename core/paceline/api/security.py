"""Who may talk to the API: checks of the Host and Origin headers and of tokens, before anything else sees the request.

A page in a browser can reach 127.0.0.1. Two checks keep foreign pages out: the Host header, because a page whose name
was rebound to a loopback address still sends its own name, and the Origin header, which browsers attach to requests
of scripts. No CORS header is ever sent, so scripts of other origins cannot read answers either.

Tokens say which program asks. What changes runtimes always needs one with the permission `admin`, because a program, or
a page of a loopback origin, that may ask a model for text must not thereby be able to install software. What decides
whose code may come here needs `trust`, because who manages runtimes need not be able to bring in any program.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from paceline.api.errors import ApiError, as_api_error
from paceline.tokens import Permission, Tokens


class LocalOnly:
    """ASGI middleware. Without `hosts`, any Host is taken when the server listens beyond loopback (`bind`)."""

    def __init__(
        self, app: ASGIApp, *, bind: str = "127.0.0.1", hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._hosts = frozenset(h.lower() for h in hosts)
        self._origins = frozenset(o.lower().rstrip("/") for o in origins)
        self._check_host = is_loopback(bind) or bool(self._hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            error = self._refusal(Headers(scope=scope))
            if error is not None:
                await JSONResponse(error.body(scope["path"]), error.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        hosts = headers.getlist("host")
        if self._check_host and not (len(hosts) == 1 and self._host_allowed(hosts[0])):
            named = ", ".join(hosts)[:200] or "nothing"
            return ApiError(
                403,
                f"The Host header names {named}; this server answers to loopback names only. "
                "Call it as 127.0.0.1 or localhost, or allow the name when starting the server.",
                code="host_not_allowed",
                type="permission_error",
            )
        for origin in headers.getlist("origin"):
            if not self._origin_allowed(origin):
                return ApiError(
                    403,
                    f"Requests from the web origin {origin[:200]} are not allowed. "
                    "Allow the origin when starting the server if you trust it.",
                    code="origin_not_allowed",
                    type="permission_error",
                )
        return None

    def _host_allowed(self, header: str) -> bool:
        name = _host_name(header)
        return name is not None and (is_loopback(name) or name in self._hosts)

    def _origin_allowed(self, origin: str) -> bool:
        if origin.lower().rstrip("/") in self._origins:
            return True
        scheme, separator, host = origin.partition("://")
        name = _host_name(host)
        return bool(separator) and scheme in ("http", "https") and name is not None and is_loopback(name)


class TokensOnly:
    """ASGI middleware: only requests with a token of `tokens` get in."""

    def __init__(self, app: ASGIApp, *, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            try:
                check_token(self._tokens, Headers(scope=scope))
            except Exception as error:
                told = as_api_error(error)
                answer = JSONResponse(told.body(scope["path"]), told.status, headers=told.headers)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def requires(permission: Permission, tokens: Tokens) -> Callable[[Request], None]:
    """A dependency of routes: their requests must carry a token with that permission."""

    def check(request: Request) -> None:
        check_token(tokens, request.headers, permission)

    return check


def check_token(tokens: Tokens, headers: Headers, needed: Permission | None = None) -> None:
    """Raise a 401 for a request without a token of `tokens`, a 403 for one whose token lacks a permission."""
    scheme, _, text = headers.get("authorization", "").partition(" ")
    held = tokens.permissions_of(text.strip()) if scheme.lower() == "bearer" else frozenset()
    if not held:
        kind = f"a token with the permission {needed}" if needed is not None else "a token"
        raise ApiError(
            401,
            f"This needs {kind} of this server, sent as `Authorization: Bearer sk-pl-…`; {_way_in(needed)} makes one.",
            code="invalid_api_key",
            type="authentication_error",
        )
    if needed is not None and needed not in held:
        raise ApiError(
            403,
            f"This token has the permission {', '.join(sorted(held))} and lacks {needed}; "
            f"{_way_in(needed)} makes one that has it.",
            code="permission_denied",
            type="permission_error",
        )


def _way_in(needed: Permission | None) -> str:
    option = f" --{needed}" if needed not in (None, Permission.INFERENCE) else ""
    return f"`paceline tokens create{option}`"


def is_loopback(name: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host_name(header: str) -> str | None:
    """The name in `name:port`, lower case, brackets removed; None for what is no host."""
    try:
        parts = urlsplit("//" + header)
        _ = parts.port
    except ValueError:
        return None
    plain = parts.netloc == header and parts.username is None and parts.password is None
    return parts.hostname if plain else None
