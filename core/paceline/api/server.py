"""The API on a socket: bound before anything is said, so that what is said is true."""

from __future__ import annotations

import socket

import click
import uvicorn

from paceline.api.administration import Administration, UpdateAtStart
from paceline.api.app import create_app
from paceline.api.security import is_loopback
from paceline.errors import PacelineError, UsageError
from paceline.host import Host
from paceline.loading import LoadConfig
from paceline.tokens import Tokens

_GRACE_S = 5
"""How long running answers may still take when the server is told to end."""


def run(
    host: Host,
    *,
    address: str,
    port: int,
    max_loaded: int,
    ttl_s: float | None,
    defaults: LoadConfig | None = None,
    check_memory: bool = True,
    patience_s: float = 600.0,
    require_token: bool = False,
    update: UpdateAtStart | None = None,
) -> None:
    """Serve until interrupted. Port 0 takes a free one; the address is printed once the socket listens.

    `require_token`: only requests with a token get in, as always beyond loopback; UsageError when there is no token.
    `update` is made once, when nothing is asked of the server.
    """
    tokens = Tokens(host.store.home)
    require_token = require_token or not is_loopback(address)
    if require_token and not tokens.all():
        why = "it asks for tokens" if is_loopback(address) else f"{address} can be reached from other machines"
        raise UsageError(
            f"nobody could use this server: {why}, and there is no token",
            help="make one with `paceline tokens create`, or listen on 127.0.0.1 without --require-token",
        )
    listener = listen(address, port)
    serving = host.serving(
        max_loaded=max_loaded, ttl_s=ttl_s, defaults=defaults, check_memory=check_memory, patience_s=patience_s
    )
    administration = Administration(
        serving=serving, library=host.library, plugins=host.plugins, store=host.store, tokens=tokens, update=update
    )
    app = create_app(
        serving,
        host.library,
        bind=address,
        required=tokens if require_token else None,
        administration=administration,
    )
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_S)
    name = f"[{address}]" if ":" in address else address
    click.echo(f"Paceline serves {len(host.library.models())} models on http://{name}:{listener.getsockname()[1]}")
    uvicorn.Server(config).run(sockets=[listener])


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; PacelineError when the port is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # TCP is named because asyncio switches off Nagle's algorithm, which would hold back every second write of an
    # answer for 40 ms, only on connections whose socket says that it speaks TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise PacelineError(
            f"cannot listen on {address} port {port}: {error.strerror}",
            help="another server may be using it: `paceline serve --port 0` takes a free one",
        ) from error
    return listener
