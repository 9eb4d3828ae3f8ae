"""`paceline runtime update`: replace selected runtimes by newer releases, each installed beside the old one first."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from paceline import paths
from paceline.cli import output
from paceline.store import Store

if TYPE_CHECKING:
    from paceline.manager.updating import Findings
    from paceline.plugins import Plugins

UPDATES_EXIST = 100
"""Exit status of `--check` when there is something to update."""


@click.command("update")
@click.argument("query", required=False)
@click.option("--check", is_flag=True, help="Only say what could be updated; exit code 100 when something could.")
@click.option("--dry-run", is_flag=True, help="Say what would be updated and change nothing.")
@click.option("--channel", type=click.Choice(["stable", "beta"]), default="stable", help="beta takes pre-releases too.")
@click.option(
    "--minimum-age",
    type=click.FloatRange(min=0),
    default=0.0,
    envvar="PACELINE_MINIMUM_RELEASE_AGE",
    metavar="DAYS",
    help="Leave out what was published later than this.",
)
@click.option("--registry-only", is_flag=True, help="Look at registries alone, not at the package index.")
@click.option("--allow-unpinned", is_flag=True, help="Take releases with packages whose index publishes no hashes.")
@output.json_option
def update(
    query: str | None,
    check: bool,
    dry_run: bool,
    channel: str,
    minimum_age: float,
    registry_only: bool,
    allow_unpinned: bool,
    as_json: bool,
) -> int:
    """Update the selected runtimes, or those that QUERY means, to the newest release that runs here.

    New releases come from the registry, from the signed registries you trust and from the package index you have
    configured. A new runtime is installed beside the old one and checked; only then it is selected. The old one stays,
    and what runs on it goes on.

    Exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage, 100 with --check when there are updates.
    """
    from paceline import plugins
    from paceline.cli.progress import shown
    from paceline.manager import updating

    store, loaded = Store(paths.home()), plugins.load()
    policy = updating.Policy(channel, timedelta(days=minimum_age), allow_unpinned)
    asked = updating.sources(
        store, loaded, policy, lambda said: click.echo(said, err=True), package_index=not registry_only
    )
    selected = updating.selected_runtimes(store, query)
    findings = updating.find_updates(selected, store, loaded, asked, policy)
    done: list[str] = []
    for step in () if check or dry_run else findings.updates:
        click.echo(f"updating {step.runtime.id} to {step.release.version}", err=True)
        with shown() as progress:
            done.append(updating.apply(step, store, loaded, progress, allow_unpinned=allow_unpinned).id)
    if as_json:
        output.as_json_text(_json(findings, done))
    else:
        _print(findings, applied=bool(done))
    if check and findings.updates:
        return UPDATES_EXIST
    untrusted = any(p.failure is updating.Failure.UNTRUSTED for p in findings.problems)
    return 1 if untrusted or (findings.problems and not findings.updates) else 0


def update_before_serving(store: Store, loaded: Plugins, *, channel: str, minimum_age: float) -> None:
    """Install and select newer releases of what is selected. Whatever fails is said, and what was selected serves."""
    from paceline.cli.progress import shown
    from paceline.manager import updating

    policy = updating.Policy(channel, timedelta(days=minimum_age))
    asked = updating.sources(store, loaded, policy, lambda said: click.echo(said, err=True))
    findings = updating.find_updates(updating.selected_runtimes(store), store, loaded, asked, policy)
    for problem in findings.problems:
        what = "warning" if problem.failure is updating.Failure.UNTRUSTED else "looking for newer runtimes"
        click.echo(f"{what}: {problem.message}", err=True)
    for step in findings.updates:
        click.echo(f"updating {step.runtime.id} to {step.release.version}", err=True)
        with shown() as progress:
            made = updating.attempt(step, store, loaded, progress, hold_failed=True)
        if isinstance(made, updating.Failed):
            held = f"; {step.release.id} is held until `paceline runtime unhold`" if made.held else ""
            click.echo(f"warning: {step.runtime.id} stays: {made.error.message}{held}", err=True)
            if made.error.help:
                click.echo(f"help: {made.error.help}", err=True)


def _print(found: Findings, *, applied: bool) -> None:
    rows = [[u.runtime.id, u.release.version, "updated" if applied else "would be updated"] for u in found.updates]
    rows += [[k.runtime.id, k.newer.version if k.newer else "", f"stays: {k.reason}"] for k in found.kept]
    if rows:
        output.table(["RUNTIME", "NEWER", ""], rows)
        output.notes(u.release for u in found.updates)
    else:
        click.echo("no runtime is selected: `paceline runtime get` installs the best for this machine")
    for problem in found.problems:
        click.echo(f"warning: {problem.message}", err=True)


def _json(found: Findings, done: list[str]) -> dict[str, Any]:
    return {
        "updates": [
            {"runtime": u.runtime.id, "formats": u.formats, "release": u.release.id, "notes": u.release.notes}
            for u in found.updates
        ],
        "kept": [{"runtime": k.runtime.id, "reason": k.reason, "newer": k.newer and k.newer.id} for k in found.kept],
        "problems": output.plain(found.problems),
        "installed": done,
    }
