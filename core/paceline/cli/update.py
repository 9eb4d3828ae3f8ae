"""`paceline runtime update`: replace selected runtimes by newer releases, each installed beside the old one first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paceline import paths
from paceline.cli import output
from paceline.cli.plans import cost, print_cost
from paceline.cli.policy import policy_options
from paceline.errors import PacelineError
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paceline.manager.plan import InstallPlan
    from paceline.manager.updates import Update
    from paceline.manager.updating import Failed, Findings, Made
    from paceline.plugins import Plugins
    from paceline.preferences import Policy

UPDATES_EXIST = 100
"""Exit status of `--check` when there is something to update."""


@click.command("update")
@click.argument("query", required=False)
@click.option("--check", is_flag=True, help="Only say what could be updated; exit code 100 when something could.")
@click.option("--dry-run", is_flag=True, help="Say what would be updated and change nothing.")
@policy_options(without=("prefer",))
@click.option("--registry-only", is_flag=True, help="Look at registries alone, not at the package index.")
@output.json_option
def update(
    query: str | None,
    check: bool,
    dry_run: bool,
    registry_only: bool,
    policy: Policy,
    as_json: bool,
) -> int:
    """Update the selected runtimes, or those that QUERY means, to the newest release that runs here.

    New releases come from the registry, from the signed registries you trust and from the package index you have
    configured. A new runtime is installed beside the old one and checked; only then it is selected. The old one stays,
    and what runs on it goes on. One that cannot be installed keeps no other from its update; one that does not pass its
    smoke test is held, so that the next update takes another.

    Exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage, 100 with --check when there are updates. A registry
    whose answer fails its verification is a failure, whatever else was found.
    """
    from paceline.cli.progress import shown
    from paceline.manager import updating
    from paceline.manager.plugin_generations import loaded as loaded_plugins
    from paceline.manager.preview import plan_here

    store, loaded = Store(paths.home()), loaded_plugins()
    asked = updating.sources(store, loaded, policy, output.say, package_index=not registry_only)
    selected = updating.selected_runtimes(store, query)
    findings = updating.find_updates(selected, store, loaded, asked, policy)
    would = {step.release.id: plan_here(step.release, store) for step in findings.updates}
    made: list[Made | Failed] = []
    for step in () if check or dry_run else findings.updates:
        click.echo(f"updating {step.runtime.id} to {step.release.version}", err=True)
        print_cost(would[step.release.id])
        with shown() as progress:
            done = updating.attempt(step, store, loaded, progress, allow_unpinned=policy.allow_unpinned)
        made.append(done)
        if isinstance(done, updating.Failed):
            _say_failed(done)
    failed = [done for done in made if isinstance(done, updating.Failed)]
    if as_json:
        output.as_json_text(_json(findings, would, made))
    else:
        _print(findings, would, made)
    if failed or any(p.failure is updating.Failure.UNTRUSTED for p in findings.problems):
        return 1
    if check and findings.updates:
        return UPDATES_EXIST
    return 1 if findings.problems and not findings.updates else 0


def update_before_serving(store: Store, loaded: Plugins, policy: Policy) -> None:
    """Install and select newer releases of what is selected. Whatever fails is said, and what was selected serves."""
    try:
        _update_all(store, loaded, policy)
    except PacelineError as error:
        click.echo(f"warning: runtimes were not updated: {error.message}", err=True)
        if error.help:
            click.echo(f"help: {error.help}", err=True)
    except Exception as error:  # a plugin's mistake, or ours: no reason not to serve
        click.echo(f"warning: runtimes were not updated: {type(error).__name__}: {error}", err=True)


def _update_all(store: Store, loaded: Plugins, policy: Policy) -> None:
    from paceline.cli.progress import shown
    from paceline.manager import updating
    from paceline.manager.preview import plan_here

    asked = updating.sources(store, loaded, policy, output.say)
    findings = updating.find_updates(updating.selected_runtimes(store), store, loaded, asked, policy)
    for remark in findings.remarks:
        output.note(remark)
    for problem in findings.problems:
        what = "warning" if problem.failure is updating.Failure.UNTRUSTED else "looking for newer runtimes"
        click.echo(f"{what}: {problem.message}", err=True)
    for step in findings.updates:
        click.echo(f"updating {step.runtime.id} to {step.release.version}", err=True)
        print_cost(plan_here(step.release, store))
        with shown() as progress:
            made = updating.attempt(step, store, loaded, progress)
        if isinstance(made, updating.Failed):
            _say_failed(made)
        elif not made.formats:
            click.echo(f"{made.update.runtime.id} {_NOT_SELECTED}", err=True)


def _say_failed(made: Failed) -> None:
    held = (
        f"; {made.update.release.id} is held until `paceline runtime unhold {made.update.release.id}`"
        if made.held
        else ""
    )
    click.echo(f"warning: {made.update.runtime.id} stays: {made.error.message}{held}", err=True)
    if made.error.help:
        click.echo(f"help: {made.error.help}", err=True)


_NOT_SELECTED = "stays: the newer one is installed, and somebody decided otherwise meanwhile"


def _print(found: Findings, would: Mapping[str, InstallPlan], made: Sequence[Made | Failed]) -> None:
    rows = [[u.runtime.id, u.release.version, _outcome(u, would[u.release.id], made)] for u in found.updates]
    rows += [[k.runtime.id, k.newer.version if k.newer else "", f"stays: {k.reason}"] for k in found.kept]
    if rows:
        output.table(["RUNTIME", "NEWER", ""], rows)
        output.notes(u.release for u in found.updates)
    else:
        click.echo("no runtime is selected: `paceline runtime get` installs the best for this machine")
    for remark in found.remarks:
        output.note(remark)
    for problem in found.problems:
        click.echo(f"warning: {problem.message}", err=True)


def _outcome(update: Update, plan: InstallPlan, made: Sequence[Made | Failed]) -> str:
    from paceline.manager.updating import Made

    done = next((done for done in made if done.update is update), None)
    if done is None:
        said = cost(plan)
        return f"would be updated{f': {said}' if said else ''}"
    if not isinstance(done, Made):
        return "stays: the newer one could not be installed"
    return "updated" if done.formats else _NOT_SELECTED


def _json(found: Findings, would: Mapping[str, InstallPlan], made: Sequence[Made | Failed]) -> dict[str, Any]:
    from paceline.manager.updating import Failed, Made

    return {
        "updates": [
            {
                "runtime": u.runtime.id,
                "formats": u.formats,
                "release": u.release.id,
                "built_here": would[u.release.id].built,
                "expected_build_s": would[u.release.id].expected_build_s,
                "download_bytes": would[u.release.id].download_bytes,
                "notes": u.release.notes,
            }
            for u in found.updates
        ],
        "kept": [{"runtime": k.runtime.id, "reason": k.reason, "newer": k.newer and k.newer.id} for k in found.kept],
        "problems": output.plain(found.problems),
        "remarks": found.remarks,
        "installed": [done.runtime.id for done in made if isinstance(done, Made)],
        "selected": {f: done.runtime.id for done in made if isinstance(done, Made) for f in done.formats},
        "failed": [
            {
                "release": done.update.release.id,
                "stays": done.update.runtime.id,
                "held": done.held,
                "message": done.error.message,
                "help": done.error.help,
            }
            for done in made
            if isinstance(done, Failed)
        ],
    }
