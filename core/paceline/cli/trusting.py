"""`paceline registry trust`, `ls`, `refresh`, `remove`: the signed registries that may bring releases here."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paceline import paths
from paceline.cli import output
from paceline.errors import RegistryError

if TYPE_CHECKING:
    from paceline.registry.signed import Outcome
    from paceline.registry.trust import TrustedRegistry

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
    from paceline.registry import signed
    from paceline.registry import trust as trusting
    from paceline.store import transaction

    root = signed.check_root(root_file.read_bytes())
    registry = trusting.make_trusted(paths.home(), url, root, name)
    outcome = signed.refresh(registry)
    if outcome.state is signed.State.REFUSED:
        if not registry.file.exists():
            transaction.discard(registry.folder)
        raise RegistryError(f"{url} is not trusted: {outcome.message}", help=outcome.help)
    trusting.remember_trust(registry)
    if as_json:
        output.as_json_text({**_json(registry), "refresh": outcome})
        return
    click.echo(f"Trusted {registry.name}: {registry.url}")
    _say(outcome)


@click.command("ls")
@output.json_option
def ls(as_json: bool) -> None:
    """List the trusted registries, and what was last verified of each. Asks nobody."""
    from paceline.registry import trust as trusting

    rows = [_json(registry) for registry in trusting.trusted(paths.home())]
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
    from paceline.registry import signed
    from paceline.registry import trust as trusting

    home = paths.home()
    wanted = [trusting.get_trusted(home, name) for name in names] if names else trusting.trusted(home)
    outcomes = [signed.refresh(registry) for registry in wanted]
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
    from paceline.registry import trust as trusting

    trusting.forget(paths.home(), name)
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


def _json(registry: TrustedRegistry) -> dict[str, Any]:
    from paceline.registry import trust as trusting

    value: dict[str, Any] = {"name": registry.name, "url": registry.url, "file": registry.file}
    try:
        known = trusting.verified(registry)
    except RegistryError as error:
        return value | {
            "releases": None,
            "verified_at": None,
            "expires_at": None,
            "expired": None,
            "problem": str(error),
        }
    return value | {
        "releases": len(known.releases) if known else None,
        "verified_at": known.verified_at.isoformat() if known else None,
        "expires_at": known.expires_at.isoformat() if known else None,
        "expired": known.expired(datetime.now(UTC)) if known else None,
        "problem": None,
    }


def _state(row: dict[str, Any]) -> str:
    from paceline.registry.trust import age

    if row["problem"] is not None:
        return str(row["problem"])
    if row["verified_at"] is None:
        return "never verified"
    how_old = age(datetime.fromisoformat(row["verified_at"]), datetime.now(UTC))
    ended = "expired since" if row["expired"] else "valid until"
    return f"verified {how_old} ago, {ended} {output.day(row['expires_at'])}"
