"""`paceline registry sign`, `renew`, `serve` and `keys`: for those who publish a signed registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paceline.cli import output
from paceline.cli.group import Group
from paceline.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from paceline.registry.publishing import Published

_ROLES = ("root", "targets", "snapshot", "timestamp")
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def _keys(**more: Any) -> Callable[[Any], Any]:
    return click.option("--keys", type=_FOLDER, help="The folder of the private keys.", **more)


def _days(command: Any) -> Any:
    text = "How long a role's signature is valid: root=365, targets=180, snapshot=30, timestamp=7 unless said."
    return click.option("--days", multiple=True, metavar="ROLE=N", callback=_read_days, help=text)(command)


def _read_days(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for value in values:
        role, _, number = value.partition("=")
        try:
            found[role] = float(number)
        except ValueError:
            found[role] = -1.0
        if role not in _ROLES or not 0 < found[role] < 10_000:
            raise UsageError(f"--days {value} is none of ROLE=N", help=f"ROLE: {', '.join(_ROLES)}; N: days")
    return found


@click.command("sign")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_keys(required=True)
@click.option(
    "--site", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder to publish into."
)
@_days
@output.json_option
def sign(file: Path, keys: Path, site: Path, days: dict[str, float], as_json: bool) -> None:
    """Sign the registry FILE into a folder that any web server can serve; the folder is made if there is none.

    It needs the keys of targets, snapshot and timestamp, and for a new folder that of the root.
    """
    from paceline.registry import publishing

    _say(publishing.publish(file, keys, site, days=days), site, as_json)


@click.command("renew")
@click.argument("site", type=_FOLDER)
@_keys(required=True)
@_days
@output.json_option
def renew(site: Path, keys: Path, days: dict[str, float], as_json: bool) -> None:
    """Sign the timestamp of SITE anew, and whatever else has lived half its time and has its key at hand.

    To be run now and then, well within the timestamp's days, by whatever runs things now and then.
    """
    from paceline.registry import publishing

    _say(publishing.renew(keys, site, days=days), site, as_json)


@click.command("serve")
@click.argument("site", type=_FOLDER)
@_keys()
@click.option("--host", "address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8350, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@_days
def serve(site: Path, keys: Path | None, address: str, port: int, days: dict[str, float]) -> None:
    """Serve the signed registry in SITE; with --keys, its signatures are renewed meanwhile.

    Everybody who reaches the address can read it, which is what it is for: nothing in it is secret.
    """
    from paceline.registry import hosting

    hosting.serve(
        site,
        address=address,
        port=port,
        keys=keys,
        days=days,
        tell=lambda line: click.echo(line),
    )


@click.group("keys", cls=Group)
def keys() -> None:
    """Make and replace the private keys of a signed registry."""


@keys.command("new")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@output.json_option
def new(folder: Path, as_json: bool) -> None:
    """Make a folder with an ed25519 key for each of root, targets, snapshot and timestamp."""
    from paceline.registry import signing

    files = signing.new_keys(folder, _ROLES)
    if as_json:
        output.as_json_text({"files": files})
        return
    for file in files:
        click.echo(file)
    click.echo("Keep root.pem and targets.pem away from the machine that serves; nobody can replace a lost root.pem.")


@keys.command("rotate")
@click.argument("role", type=click.Choice(_ROLES))
@_keys(required=True)
@click.option("--site", required=True, type=_FOLDER, help="The folder that is published.")
@_days
@output.json_option
def rotate(role: str, keys: Path, site: Path, days: dict[str, float], as_json: bool) -> None:
    """Make a new key for ROLE and publish a root that trusts it instead of the old one. It needs the root's key."""
    from paceline.registry import publishing

    published, file = publishing.rotate(role, keys, site, days=days)
    if not as_json:
        click.echo(f"{role} is signed with {file} from now on; its older keys count for nothing")
    _say(published, site, as_json)


def _say(published: Published, site: Path, as_json: bool) -> None:
    if as_json:
        expires = {role: end.isoformat() for role, end in published.expires.items()}
        output.as_json_text({**output.plain(published), "expires": expires, "site": site})
        return
    rows = []
    for role in _ROLES:
        end = f"{published.expires[role]:%Y-%m-%d %H:%M} UTC"
        rows.append([role, str(published.versions[role]), end, "signed now" if role in published.signed else ""])
    output.table(["ROLE", "VERSION", "VALID UNTIL", ""], rows)
    for warning in published.warnings:
        click.echo(f"warning: {warning}", err=True)
