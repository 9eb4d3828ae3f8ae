"""`paceline plugins`: what was found, what it provides, and why something is not active."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paceline.cli import output

if TYPE_CHECKING:
    from paceline.plugins import Plugin


@click.command()
@output.json_option
def plugins(as_json: bool) -> None:
    """List engine plugins and why one is not active."""
    from paceline.plugins import load

    found = load().plugins
    if as_json:
        output.as_json_text(found)
        return
    output.table(["PLUGIN", "STATE", "DISTRIBUTION", "ENGINES", "FORMATS"], [_row(p) for p in found])
    for p in found:
        if p.error:
            origin = f" ({_origin(p)})" if p.distribution else ""
            click.echo(f"\n{p.name}{origin}: {p.error}")


def _row(p: Plugin) -> list[str]:
    return [p.name, p.state.value, _origin(p), ", ".join(p.engines), ", ".join(p.formats)]


def _origin(p: Plugin) -> str:
    return f"{p.distribution or ''} {p.version or ''}".strip()
