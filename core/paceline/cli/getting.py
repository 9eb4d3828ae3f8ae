"""`paceline runtime get`: what could be installed, and installing it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paceline import paths
from paceline.cli import output
from paceline.cli.plans import print_cost, print_plan
from paceline.cli.policy import accepts, policy_options
from paceline.errors import UnpinnedError
from paceline.manager import inventory
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.manager.plan import InstallPlan
    from paceline.plugins import Plugins
    from paceline.preferences import Policy
    from paceline.types import Release, Runtime, Verdict


@click.command("get")
@click.argument("query", required=False)
@click.option("-l", "--list", "as_list", is_flag=True, help="List the releases that match, each with its verdict.")
@click.option("-v", "--verbose", is_flag=True, help="With --list, print each release's features and notes too.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="A wheel or folder to take its package from.")
@click.option("--allow-incompatible", is_flag=True, help="Install what this machine is said not to run.")
@policy_options()
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@output.json_option
def get(
    query: str | None,
    source: Path | None,
    as_list: bool,
    verbose: bool,
    allow_incompatible: bool,
    dry_run: bool,
    policy: Policy,
    as_json: bool,
) -> None:
    """Install the release that QUERY means: of several, the best for this machine; without QUERY, the best of all.

    A version that is not listed is looked for in the package index. What is named with its version is taken also where
    it is held, or younger than the minimum age.

    A QUERY that is the path of a wheel, or of a folder with a package's source, installs the best release made with
    that package and takes the package from there; with --from, the release that QUERY means.

    Exit codes: 0 done or already installed, 1 failed, 2 wrong usage, 3 nothing matches or nothing that runs here.
    """
    from paceline.cli.local import taken_from
    from paceline.manager.exact import ranked_or_found
    from paceline.manager.local_packages import is_path
    from paceline.manager.plugin_generations import loaded as loaded_plugins
    from paceline.manager.preview import plan_here, preview

    if source is None and query is not None and is_path(query):
        source, query = Path(query), None
    loaded = loaded_plugins()
    store = Store(paths.home())
    with ExitStack() as kept:
        wheel = None
        if source is not None or as_list:
            ranked = inventory.ranked(store, loaded, query, channel=policy.channel, tell=output.note)
        else:
            ranked = ranked_or_found(store, loaded, query, channel=policy.channel, tell=output.note, asking=output.say)
        if source is not None:
            ranked, wheel = kept.enter_context(taken_from(source, ranked, policy))
        if as_list:
            _print_list(ranked, store, verbose, as_json)
            return
        choose = partial(inventory.chosen, ranked, store, query, allow_incompatible=allow_incompatible)
        try:
            choice = choose(policy=policy)
        except UnpinnedError as error:
            if dry_run or as_json or not accepts(error):
                raise
            policy = replace(policy, allow_unpinned=True)
            choice = choose(policy=policy)
        release = choice.release
        for remark in choice.remarks:
            output.say(remark)
        if dry_run:
            would = preview(release, store)
            if as_json:
                output.as_json_text({**output.plain(would.plan), "disk": would.disk})
            else:
                print_plan(would)
            return
        _install(release, plan_here(release, store), store, loaded, policy.allow_unpinned, as_json, wheel)


def install_best(loaded: Plugins, store: Store, model_format: str, policy: Policy) -> Runtime:
    """Install the best release for this machine that serves `model_format`, showing its progress."""
    from paceline.manager.preview import plan_here

    known = inventory.ranked(store, loaded, channel=policy.channel, tell=output.note)
    choice = inventory.chosen([(r, v) for r, v in known if model_format in r.formats], store, None, policy=policy)
    for remark in choice.remarks:
        output.say(remark)
    plan = plan_here(choice.release, store)
    return _run_install(choice.release, plan, store, loaded, allow_unpinned=policy.allow_unpinned)


def _run_install(
    release: Release,
    plan: InstallPlan,
    store: Store,
    loaded: Plugins,
    *,
    allow_unpinned: bool,
    wheel: Path | None = None,
) -> Runtime:
    from paceline.cli.progress import shown
    from paceline.manager.installation import install

    print_cost(plan)
    with shown() as progress:
        engine = loaded.engine(release.engine)
        return install(release, store, engine, progress, allow_unpinned=allow_unpinned, wheel=wheel)


def _install(
    release: Release,
    plan: InstallPlan,
    store: Store,
    loaded: Plugins,
    allow_unpinned: bool,
    as_json: bool,
    wheel: Path | None,
) -> None:
    started = time.monotonic()
    installed = _run_install(release, plan, store, loaded, allow_unpinned=allow_unpinned, wheel=wheel)
    took = time.monotonic() - started
    selection = store.selection()
    if as_json:
        value = inventory.describe_runtime(installed, store, selection)
        output.as_json_text({**value, "already_installed": plan.already_installed, "seconds": round(took, 2)})
        return
    if plan.already_installed:
        click.echo(f"{installed.id} is already installed")
    else:
        click.echo(f"Installed {installed.id} in {took:.0f} s")
        if seen := store.manifest(installed).get("unpinned"):
            click.echo(f"Recorded what {', '.join(seen)} is here; nothing else is installed in its place from now on")
    for name in installed.formats:
        chosen = selection.formats.get(name)
        if chosen == installed.id:
            click.echo(f"Selected for {name.upper()}")
        elif chosen is None:
            click.echo(f"Not selected for {name.upper()}, as it is held: paceline runtime select {installed.id}")
        else:
            click.echo(f"{name.upper()} is served by {chosen}; select this one: paceline runtime select {installed.id}")


def _print_list(ranked: Sequence[tuple[Release, Verdict]], store: Store, verbose: bool, as_json: bool) -> None:
    installed = {r.id for r in store.runtimes()}
    if as_json:
        output.as_json_text([inventory.describe_release(r, v, installed=r.id in installed) for r, v in ranked])
        return
    rows = [
        [r.name, r.version, "installed" if r.id in installed else "available", r.source]
        + ([", ".join(r.features)] if verbose else [])
        + [_verdict_words(r, v)]
        for r, v in ranked
    ]
    output.table(["NAME", "VERSION", "STATE", "SOURCE", *(["FEATURES"] if verbose else []), "VERDICT"], rows)
    if verbose:
        output.notes(r for r, _ in ranked)


def _verdict_words(release: Release, verdict: Verdict) -> str:
    if not verdict.ok:
        return f"{verdict.status.value}: {output.reason(release, verdict)}"
    notes = ["compatible"]
    if any(p.source for p in release.recipe.packages):
        notes.append("built here")
    if release.recipe.unpinned:
        notes.append("needs --allow-unpinned")
    return ", ".join(notes)
