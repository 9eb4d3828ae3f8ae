"""`paceline plugins`: what was found, what it provides, and why something is not active."""

from __future__ import annotations

import click

from paceline.cli import output


@click.command()
@output.json_option
def plugins(as_json: bool) -> None:
    """List engine plugins and why one is not active."""
    from paceline.plugins import load

    found = load().plugins
    if as_json:
        output.as_json_text(found)
        return
    rows = [
        [p.name, p.state.value, f"{p.distribution or '?'} {p.version or ''}".strip(), ", ".join(p.engines + p.formats)]
        for p in found
    ]
    output.table(["PLUGIN", "STATE", "DISTRIBUTION", "PROVIDES"], rows)
    for p in found:
        if p.error:
            click.echo(f"{p.name} ({p.distribution} {p.version}): {p.error}", err=True)
