"""`paceline ps`, `load` and `unload`: the models of a running server, through its API."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from paceline import network
from paceline.cli import output
from paceline.cli.loading import load_options
from paceline.errors import NotFoundError, PacelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from paceline.loading import LoadConfig

_HERE = ("127.0.0.1", "localhost", "::1")


def _of_server(command: Any) -> Any:
    """Where the server is; the command receives an `_Server` as `server`."""
    return click.option(
        "--server",
        default="http://127.0.0.1:1234",
        envvar="PACELINE_SERVER",
        show_default=True,
        metavar="URL",
        callback=lambda context, option, url: _Server(url),
        help="A running `paceline serve`; PACELINE_TOKEN is the token it asks for, if it does.",
    )(command)


@click.command("ps")
@_of_server
@output.json_option
def ps(server: _Server, as_json: bool) -> None:
    """List the models that a running server has loaded."""
    loaded = server.loaded()
    if as_json:
        output.as_json_text(loaded)
    elif not loaded:
        click.echo("no model is loaded; one loads when it is first asked for, or with `paceline load MODEL`")
    else:
        rows = [
            [
                entry["model"],
                entry["draft"] or "",
                entry["runtime"],
                str(entry["context_length"]),
                f"{entry['running']} running" if entry["running"] else "idle",
            ]
            for entry in loaded
        ]
        output.table(["MODEL", "DRAFT", "RUNTIME", "CONTEXT", "REQUESTS"], rows)


@click.command("load")
@click.argument("model")
@click.option("--ttl", type=click.IntRange(1), metavar="SECONDS", help="Unload it when idle so long; default: never.")
@click.option("--force", is_flag=True, help="Load it also when it is known not to fit the memory.")
@load_options()
@_of_server
@output.json_option
def load(model: str, ttl: int | None, force: bool, config: LoadConfig, server: _Server, as_json: bool) -> None:
    """Load MODEL into a running server, and wait until it is loaded."""
    started = time.monotonic()
    answer = server.post("/api/v1/models/load", {"model": model, "ttl": ttl, "force": force, **config.plain()})
    if as_json:
        output.as_json_text(answer)
    else:
        click.echo(f"{answer['instance_id']} is loaded, after {time.monotonic() - started:.1f} s")


@click.command("unload")
@click.argument("model", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Unload every model.")
@_of_server
@output.json_option
def unload(model: str | None, everything: bool, server: _Server, as_json: bool) -> None:
    """Unload MODEL from a running server, once what it is answering has ended."""
    if (model is None) != everything:
        raise UsageError("give a MODEL or --all, one of them", help="`paceline ps` lists what is loaded")
    names = [str(entry["model"]) for entry in server.loaded()]
    if model is not None:
        names = [n for n in names if model in (n, n.rpartition("/")[2])][:1]
        if not names:
            raise NotFoundError(f"{model} is not loaded", help="`paceline ps` lists what is")
    for name in names:
        server.post("/api/v1/models/unload", {"instance_id": name})
    if as_json:
        output.as_json_text({"unloaded": names})
    else:
        click.echo("\n".join(f"{name} is unloaded" for name in names) or "no model is loaded")


class _Server:
    """A running server. One on this machine is asked without proxies, and offline, too."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def loaded(self) -> list[dict[str, Any]]:
        """What `/health` says of each loaded model."""
        answer: list[dict[str, Any]] = self._ask(lambda client: client.get(f"{self._url}/health"))["loaded"]
        return answer

    def post(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """The answer to `body`; waits as long as it takes. Raises PacelineError with the server's words."""
        return self._ask(lambda client: client.post(f"{self._url}{path}", json=body))

    def _ask(self, send: Callable[[network.Client], Any]) -> dict[str, Any]:
        import httpx

        token = os.environ.get("PACELINE_TOKEN")
        options: dict[str, Any] = {"timeout": httpx.Timeout(None, connect=20.0)}
        if token:
            options["headers"] = {"Authorization": f"Bearer {token}"}
        try:
            if httpx.URL(self._url).host in _HERE:
                options |= {"trust_env": False, "event_hooks": {}}
            with network.client(**options) as client:
                answer = send(client)
            value: dict[str, Any] = answer.json()
            if answer.is_success:
                return value
            message, _, way_out = str(value["error"]["message"]).partition(" Help: ")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            way_out = "start one with `paceline serve`, or name it: --server http://ADDRESS:PORT"
            raise PacelineError(f"no server answers at {self._url}: {error}", help=way_out) from None
        except (ValueError, KeyError, TypeError):
            way_out = "name one of Paceline's: --server http://ADDRESS:PORT"
            raise PacelineError(f"what answers at {self._url} is no Paceline server", help=way_out) from None
        kind = NotFoundError if answer.status_code == 404 else PacelineError
        raise kind(message, help=way_out or None)
