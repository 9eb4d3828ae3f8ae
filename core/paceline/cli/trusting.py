"""`paceline registry trust`, `ls`, `refresh`, `remove`: the signed registries that may bring releases here."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paceline import paths
from paceline.cli import output

if TYPE_CHECKING:
    from paceline.registry.signed import Outcome

CANNOT_VERIFY = 75
"""Exit status of a refresh that could verify nothing now, and of which nothing bad follows (EX_TEMPFAIL)."""


@click.command("trust")
@click.argument("url")
@click.option(
    "--root",
    "root_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The publisher's metadata/root.json, which you got in a way that you trust.",
)
@click.option("--name", help="What to call it; by default the host in URL.")
@output.json_option
def trust(url: str, root_file: Path, name: str | None, as_json: bool) -> None:
    """Trust the signed registry at URL from now on, starting from a root that you were given.

    Its publisher can then name the packages that runtimes are made of, and so the code that runs in them. It is asked
    at once; one whose answer does not follow from the root is not trusted, one that does not answer is.
    """
    from paceline.manager import registries

    registry, outcome = registries.trust(paths.home(), url, root_file.read_bytes(), name)
    if as_json:
        output.as_json_text({**registries.describe(registry), "refresh": outcome})
        return
    click.echo(f"Trusted {registry.name}: {registry.url}")
    _say(outcome)


@click.command("ls")
@output.json_option
def ls(as_json: bool) -> None:
    """List the trusted registries, and what was last verified of each. Asks nobody."""
    from paceline.manager.registries import describe
    from paceline.registry.trust import trusted

    rows = [describe(registry) for registry in trusted(paths.home())]
    if as_json:
        output.as_json_text(rows)
    elif not rows:
        click.echo("no signed registry is trusted: `paceline registry trust URL --root FILE`")
    else:
        cells = [[r["name"], r["url"], "?" if r["releases"] is None else str(r["releases"]), _state(r)] for r in rows]
        output.table(["NAME", "URL", "RELEASES", "STATE"], cells)


@click.command("refresh")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@output.json_option
def refresh(names: tuple[str, ...], as_json: bool) -> int:
    """Ask the trusted registries for news, all or those named, and verify them.

    Exit codes: 0 verified, 1 one was refused, 3 no such registry, 75 one cannot be verified now.
    """
    from paceline.manager import registries
    from paceline.registry import signed

    outcomes = registries.refresh(paths.home(), names)
    if as_json:
        output.as_json_text(outcomes)
    else:
        for outcome in outcomes:
            _say(outcome)
    states = {outcome.state for outcome in outcomes}
    if signed.State.REFUSED in states:
        return 1
    return CANNOT_VERIFY if signed.State.CANNOT_VERIFY in states else 0


@click.command("remove")
@click.argument("name")
@output.json_option
def remove(name: str, as_json: bool) -> None:
    """Trust a registry no longer. What was installed from it stays."""
    from paceline.registry.trust import forget

    forget(paths.home(), name)
    if as_json:
        output.as_json_text({"removed": name})
    else:
        click.echo(f"{name} is trusted no longer")


def _say(outcome: Outcome) -> None:
    if outcome.ok:
        click.echo(f"{outcome.name}: {outcome.state.value}, {outcome.message}")
        return
    click.echo(f"warning: {outcome.message}", err=True)
    if outcome.help:
        click.echo(f"help: {outcome.help}", err=True)


def _state(row: dict[str, Any]) -> str:
    from paceline.registry.trust import age

    if row["problem"] is not None:
        return str(row["problem"])
    if row["verified_at"] is None:
        return "never verified"
    how_old = age(datetime.fromisoformat(row["verified_at"]), datetime.now(UTC))
    ended = "expired since" if row["expired"] else "valid until"
    return f"verified {how_old} ago, {ended} {output.day(row['expires_at'])}"
