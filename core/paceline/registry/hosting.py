"""Serve a signed registry's folder over HTTP, and keep its signatures from ending meanwhile."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

from paceline.errors import PacelineError, RegistryError
from paceline.registry import publishing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from starlette.applications import Starlette

LOOK_S = 600.0
"""So often the signatures are looked at; what has lived half its time is signed anew."""


def app(site: Path) -> Starlette:
    """What answers: the files below metadata/ and targets/, and nothing else of the folder."""
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    return Starlette(routes=[Mount(f"/{name}", StaticFiles(directory=site / name)) for name in ("metadata", "targets")])


def serve(
    site: Path,
    *,
    address: str,
    port: int,
    tell: Callable[[str], None],
    keys: Path | None = None,
    days: Mapping[str, float] | None = None,
    look_s: float = LOOK_S,
) -> None:
    """Serve until interrupted; `tell` is given the address once it listens, and whatever is signed or cannot be.

    Raises RegistryError when there is no signed registry, PacelineError when the port is taken.
    """
    import uvicorn

    if not (site / "metadata" / "timestamp.json").exists():
        raise RegistryError(
            f"{site} holds no signed registry", help="make one: paceline registry sign FILE --keys KEYS --site SITE"
        )
    listener = _listen(address, port)
    name = f"[{address}]" if ":" in address else address
    tell(f"Serving {site} on http://{name}:{listener.getsockname()[1]}")
    ended = threading.Event()
    if keys is not None:
        arguments = (keys, site, days, tell, ended, look_s)
        threading.Thread(target=_renew, args=arguments, name="renewal", daemon=True).start()
    try:
        uvicorn.Server(uvicorn.Config(app(site), log_level="warning", access_log=False)).run(sockets=[listener])
    finally:
        ended.set()


def _renew(
    keys: Path,
    site: Path,
    days: Mapping[str, float] | None,
    tell: Callable[[str], None],
    ended: threading.Event,
    look_s: float,
) -> None:
    while True:
        try:
            done = publishing.renew(keys, site, days=days, at_once=False)
            if done.signed:
                tell(f"signed anew: {', '.join(done.signed)}")
            for warning in done.warnings:
                tell(f"warning: {warning}")
        except PacelineError as error:  # the next look may find the key, the disk or the folder mended
            tell(f"warning: the signatures cannot be renewed: {error.message}")
        if ended.wait(look_s):
            return


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except OSError as error:
        raise PacelineError(
            f"cannot listen on {address} port {port}: {error.strerror or error}",
            help="another server may be using it: `--port 0` takes a free one",
        ) from error
