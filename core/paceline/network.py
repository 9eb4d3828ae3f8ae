"""The one door out of the host: every request goes through `client`, or through uv, which is told the same.

PACELINE_OFFLINE=1, or `paceline --offline …`, closes the door for this process and for all that it starts.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import paceline
from paceline.errors import OfflineError, UsageError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    import httpx
    from httpx import Client as Client

OFFLINE = "PACELINE_OFFLINE"
"""The environment variable. Empty, `0`, `false`, `no` and `off` mean online, everything else offline."""

HELP = f"leave out --offline, or unset {OFFLINE}; offline, only what the cache holds can be installed"
"""The way out of what failed for being offline."""


def is_offline(environ: Mapping[str, str] | None = None) -> bool:
    """Whether no request may leave this machine."""
    return is_on((os.environ if environ is None else environ).get(OFFLINE, ""))


def is_on(value: str) -> bool:
    """What the value of a variable that switches something means: on, but for nothing, 0, false, no and off."""
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def go_offline() -> None:
    """Close the door for this process and for all that it starts from now on."""
    os.environ[OFFLINE] = "1"


def require_online(what: str) -> None:
    """Raise OfflineError when offline. `what` says what is not done: "the package index was not asked"."""
    if is_offline():
        raise OfflineError(f"{what}: Paceline is offline ({OFFLINE} is set)", help=HELP)


def client(**options: Any) -> Client:
    """An `httpx.Client` with our name, time-outs (connecting 20 s, between two parts of an answer 60 s) and redirects.

    `options` are httpx's and come first. Proxies are those of HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY;
    certificates those of SSL_CERT_FILE, SSL_CERT_DIR or PIP_CERT, else the system's and the common public ones. While
    offline every request, also one that a redirect asks for, raises OfflineError before anything is sent. Raises
    UsageError for proxies and certificates that cannot be used; requests raise `httpx.HTTPError`.
    """
    import httpx

    headers = {"User-Agent": f"paceline/{paceline.__version__}", **(options.pop("headers", None) or {})}
    settings: dict[str, Any] = {"timeout": httpx.Timeout(60.0, connect=20.0), "follow_redirects": True}
    if "transport" not in options:
        settings["verify"] = _certificates(os.environ)
    settings |= {"headers": headers, "event_hooks": {"request": [_check]}, **options}
    try:
        return httpx.Client(**settings)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names cannot be used: {error}",
            help="set it to http://host:port or https://host:port",
        ) from None


class Clients:
    """A client for each thread that asks for one; one that was closed, as by who waited too long, is made anew."""

    def __init__(self, **options: Any) -> None:
        """`options`: as for `client`."""
        self._options = options
        self._of_thread = threading.local()
        self._made: list[Client] = []

    def __call__(self) -> Client:
        found: Client | None = getattr(self._of_thread, "client", None)
        if found is None or found.is_closed:
            found = self._of_thread.client = client(**self._options)
            self._made.append(found)
        return found

    def close(self) -> None:
        """Close those of all threads."""
        for made in self._made:
            made.close()


def _check(request: httpx.Request) -> None:
    url = request.url
    require_online(f"{url.scheme}://{url.netloc.decode()}{url.path} was not asked")


def _certificates(environ: Mapping[str, str]) -> ssl.SSLContext:
    """The authorities to believe: those named, or the system's with the public ones that httpx brings."""
    import ssl

    import certifi

    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT"):
        if value := environ.get(name):
            folder = name == "SSL_CERT_DIR"
            try:
                return ssl.create_default_context(cafile=None if folder else value, capath=value if folder else None)
            except OSError as error:  # also what is no certificate
                raise UsageError(
                    f"{name} names {value}, which cannot be read: {error.strerror or error}",
                    help="name a file of certificates in PEM format, or unset it",
                ) from None
    context = ssl.create_default_context(cafile=certifi.where())
    context.load_default_certs()
    return context
