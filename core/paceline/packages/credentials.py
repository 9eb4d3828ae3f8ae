"""The user names and passwords that a person has given for package indexes, each sent to its own server alone."""

from __future__ import annotations

import netrc
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import httpx

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

_VARIABLES = ("UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_FIND_LINKS")
_NAMED = re.compile(r"(?:([\w-]+)=)?(https?://.*)")


class Credentials(httpx.Auth):
    """Those in the addresses of indexes, in UV_INDEX_<NAME>_USERNAME and _PASSWORD, and in ~/.netrc or $NETRC.

    A file's address gets those of the index on the same server; a server that it redirects to gets its own or none.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ`: as uv sees it."""
        self._known: dict[str, tuple[str, str]] = {}
        for variable in _VARIABLES:
            for entry in environ.get(variable, "").split():
                if found := _NAMED.fullmatch(entry):
                    self._learn(environ, *found.groups())
        self._netrc = _netrc(environ)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if "Authorization" not in request.headers and (found := self._of(request.url)):
            yield from httpx.BasicAuth(*found).auth_flow(request)
        else:
            yield request

    def _of(self, url: httpx.URL) -> tuple[str, str] | None:
        if url.username or url.password:
            return unquote(url.username), unquote(url.password)
        if known := self._known.get(f"{url.scheme}://{url.netloc.decode()}"):
            return known
        found = self._netrc.authenticators(url.host) if self._netrc is not None else None
        return (found[0] or "", found[2] or "") if found is not None else None

    def _learn(self, environ: Mapping[str, str], name: str | None, address: str) -> None:
        try:
            parts = urlsplit(address)
        except ValueError:  # uv says so, when it is asked
            return
        user, password = parts.username, parts.password
        if name is not None:
            prefix = f"UV_INDEX_{re.sub(r'[^A-Z0-9]', '_', name.upper())}"
            user = user or environ.get(f"{prefix}_USERNAME")
            password = password or environ.get(f"{prefix}_PASSWORD")
        if user or password:
            origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
            self._known[origin] = unquote(user or ""), unquote(password or "")


def _netrc(environ: Mapping[str, str]) -> netrc.netrc | None:
    file = Path(environ.get("NETRC") or Path(os.path.expanduser("~")) / ".netrc")  # noqa: PTH111 - no error without one
    try:
        return netrc.netrc(file)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return None
