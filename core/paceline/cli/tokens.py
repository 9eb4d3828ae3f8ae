"""`paceline tokens`: who may use the local API."""

from __future__ import annotations

import click

from paceline import paths
from paceline.cli import output
from paceline.cli.group import Group
from paceline.tokens import Permission, Tokens


@click.group(cls=Group)
def tokens() -> None:
    """Create, list and revoke the tokens of the local API.

    Changes of runtimes through the API need a token with the permission `admin`, and what decides whose code comes here
    one with `trust`. Everything else needs one where `paceline serve` runs with --require-token or listens beyond this
    machine.
    """


@tokens.command("create")
@click.argument("name", default="")
@click.option("--admin", is_flag=True, help="May also install, update, select, mend and remove runtimes.")
@click.option("--trust", is_flag=True, help="As --admin, and may trust registries, bring bundles, install plugins.")
@output.json_option
def create(name: str, admin: bool, trust: bool, as_json: bool) -> None:
    """Create a token and print it, this once: only its hash is kept."""
    permissions = [Permission.INFERENCE]
    if admin or trust:
        permissions.append(Permission.ADMIN)
    if trust:
        permissions.append(Permission.TRUST)
    token, text = Tokens(paths.home()).create(name, permissions)
    if as_json:
        output.as_json_text({"id": token.id, "name": name, "permissions": token.permissions, "token": text})
    else:
        click.echo(f"created {token.id} ({', '.join(token.permissions)}); it is shown only now:", err=True)
        click.echo(text)


@tokens.command("ls")
@output.json_option
def ls(as_json: bool) -> None:
    """List the tokens, without their secrets."""
    found = Tokens(paths.home()).all()
    if as_json:
        output.as_json_text(
            [
                {"id": t.id, "name": t.name, "permissions": t.permissions, "created_at": t.created_at.isoformat()}
                for t in found
            ]
        )
    elif found:
        rows = [[t.id, t.name, ", ".join(t.permissions), output.day(t.created_at.isoformat())] for t in found]
        output.table(["ID", "NAME", "PERMISSIONS", "CREATED"], rows)
    else:
        click.echo("there are no tokens: `paceline tokens create` makes one")


@tokens.command("revoke")
@click.argument("wanted", metavar="ID|NAME")
@output.json_option
def revoke(wanted: str, as_json: bool) -> None:
    """Revoke a token; running servers refuse it from their next request on."""
    token = Tokens(paths.home()).revoke(wanted)
    if as_json:
        output.as_json_text({"id": token.id, "name": token.name, "revoked": True})
    else:
        click.echo(f"revoked {token.id}{f' ({token.name})' if token.name else ''}")
