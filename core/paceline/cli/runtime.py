"""`paceline runtime`: what is installed, what could be, and what serves which format."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from paceline import paths
from paceline.cli import output
from paceline.cli.update import update
from paceline.errors import IncompatibleError, NotFoundError, PacelineError
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from paceline.plan import InstallPlan
    from paceline.plugins import Plugins
    from paceline.store import Selection
    from paceline.types import Release, Runtime, Verdict


@click.group(epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing matches, or nothing that runs here.")
def runtime() -> None:
    """Install, select, update, remove and survey runtimes.

    A QUERY is an engine (`llama.cpp`), an engine with filters (`llama.cpp:cuda`), one version (`llama.cpp@0.3.36`) or a
    full name (`llama.cpp-linux-x86_64-cpu@0.3.36`).
    """


@runtime.command("ls")
@output.json_option
def ls(as_json: bool) -> None:
    """List the installed runtimes."""
    store = Store(paths.home())
    installed, selection = store.runtimes(), store.selection()
    if as_json:
        output.as_json_text([_runtime_json(r, selection) for r in installed])
    elif not installed:
        click.echo("no runtime is installed: `paceline runtime get` installs the best for this machine")
    else:
        rows = [
            [r.id, "✓" if selection.formats_of(r.id) else "", ", ".join(f.upper() for f in r.formats)]
            for r in installed
        ]
        output.table(["LLM ENGINE", "SELECTED", "MODEL FORMAT"], rows)


@runtime.command("get")
@click.argument("query", required=False)
@click.option("-l", "--list", "as_list", is_flag=True, help="List the releases that match, each with its verdict.")
@click.option("--allow-incompatible", is_flag=True, help="Install what this machine is said not to run.")
@click.option("--allow-unpinned", is_flag=True, help="Install packages whose index publishes no hashes.")
@click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")
@output.json_option
def get(
    query: str | None, as_list: bool, allow_incompatible: bool, allow_unpinned: bool, dry_run: bool, as_json: bool
) -> None:
    """Install the release that QUERY means: of several, the best for this machine; without QUERY, the best of all.

    Exit codes: 0 done or already installed, 1 failed, 2 wrong usage, 3 nothing matches or nothing that runs here.
    """
    from paceline import plugins
    from paceline.plan import make_plan
    from paceline.policy import choose

    loaded = plugins.load()
    store = Store(paths.home())
    with _nothing_fits_is_3():
        ranked = _ranked(loaded, query)
        if as_list:
            _print_list(ranked, store, as_json)
            return
        choice = choose(ranked, allow_incompatible=allow_incompatible, allow_unpinned=allow_unpinned)
    release = choice.release
    for remark in choice.remarks:
        click.echo(remark, err=True)
    plan = make_plan(release, store.home, [r.id for r in store.runtimes()], store.selection())
    if dry_run:
        output.as_json_text(plan) if as_json else _print_plan(plan)
        return
    _install(release, plan, store, loaded, allow_unpinned, as_json)


@runtime.command("select")
@click.argument("query")
@click.option("--dry-run", is_flag=True, help="Say what would change and change nothing.")
@output.json_option
def select(query: str, dry_run: bool, as_json: bool) -> None:
    """Let an installed runtime serve every model format it can."""
    store = Store(paths.home())
    with _nothing_fits_is_3():
        chosen = store.get(query)
    before = store.selection()
    changes = tuple(f for f in chosen.formats if before.formats.get(f) != chosen.id)
    if not dry_run:
        changes = store.select(chosen)
    if as_json:
        output.as_json_text({"runtime": chosen.id, "selected": changes, "dry_run": dry_run})
        return
    for name in chosen.formats:
        already = "Already selected" if name not in changes else "Would select" if dry_run else "Selected"
        click.echo(f"{already} {chosen.id} for {name.upper()}")


@runtime.command("remove")
@click.argument("query")
@click.option("--force", is_flag=True, help="Remove it even when it is selected.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed and remove nothing.")
@output.json_option
def remove(query: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Delete an installed runtime."""
    store = Store(paths.home())
    with _nothing_fits_is_3():
        chosen = store.get(query)
    size = store.manifest(chosen).get("size_bytes")
    if not dry_run:
        store.remove(chosen, force=force)
    if as_json:
        output.as_json_text({"removed": chosen.id, "size_bytes": size, "dry_run": dry_run})
    else:
        click.echo(f"{'Would remove' if dry_run else 'Removed'} {chosen.id} ({output.size(size)})")


runtime.add_command(update)


@runtime.command("survey")
@output.json_option
def survey(as_json: bool) -> None:
    """Show the facts about this machine, each with its source, and the verdict on every release."""
    from paceline import plugins
    from paceline.survey import describe, take_survey

    facts = take_survey()
    ranked = _ranked(plugins.load(), None)
    if as_json:
        verdicts = [{"release": release.id, **output.plain(verdict)} for release, verdict in ranked]
        output.as_json_text({"facts": facts, "releases": verdicts})
        return
    output.table(["FACT", "VALUE", "SOURCE"], describe(facts))
    click.echo()
    output.table(["RELEASE", "VERDICT", ""], [[r.id, v.status.value, "" if v.ok else v.message] for r, v in ranked])


def install_best(loaded: Plugins, store: Store, model_format: str) -> Runtime:
    """Install the best release for this machine that serves `model_format`, showing its progress."""
    from paceline.plan import make_plan
    from paceline.policy import choose

    with _nothing_fits_is_3():
        ranked = [(r, v) for r, v in _ranked(loaded, None) if model_format in r.formats]
        choice = choose(ranked)
    for remark in choice.remarks:
        click.echo(remark, err=True)
    plan = make_plan(choice.release, store.home, [r.id for r in store.runtimes()], store.selection())
    return _run_install(choice.release, plan, store, loaded, allow_unpinned=False)


class _NothingFits(PacelineError):
    exit_status = 3


@contextmanager
def _nothing_fits_is_3() -> Iterator[None]:
    try:
        yield
    except (NotFoundError, IncompatibleError) as error:
        raise _NothingFits(error.message, help=error.help) from error


def _ranked(loaded: Plugins, query: str | None) -> list[tuple[Release, Verdict]]:
    from paceline.registry import load_registry
    from paceline.survey import take_survey
    from paceline.upstream import found_file
    from paceline.verdict import rank

    registry = load_registry(loaded, found=found_file(paths.home()))
    matching = registry.match(query) if query else list(registry.releases)
    if not matching:
        what = f"no release matches {query!r}" if query else "no release is known"
        raise NotFoundError(
            what, help="`paceline runtime get --list` shows every release, `paceline plugins` the engines"
        )
    return rank(matching, take_survey())


def _run_install(
    release: Release, plan: InstallPlan, store: Store, loaded: Plugins, *, allow_unpinned: bool
) -> Runtime:
    from paceline.cli.progress import shown
    from paceline.installation import install

    if plan.built and not plan.already_installed:
        click.echo(f"{_building(plan)}; nothing is compiled that the cache already holds", err=True)
    with shown() as progress:
        return install(release, store, loaded.engine(release.engine), progress, allow_unpinned=allow_unpinned)


def _install(
    release: Release, plan: InstallPlan, store: Store, loaded: Plugins, allow_unpinned: bool, as_json: bool
) -> None:
    started = time.monotonic()
    installed = _run_install(release, plan, store, loaded, allow_unpinned=allow_unpinned)
    took = time.monotonic() - started
    selection = store.selection()
    if as_json:
        value = _runtime_json(installed, selection)
        output.as_json_text({**value, "already_installed": plan.already_installed, "seconds": round(took, 2)})
        return
    if plan.already_installed:
        click.echo(f"{installed.id} is already installed")
    else:
        click.echo(f"Installed {installed.id} in {took:.0f} s")
    for name in installed.formats:
        chosen = selection.formats.get(name)
        if chosen == installed.id:
            click.echo(f"Selected for {name.upper()}")
        else:
            click.echo(f"{name.upper()} is served by {chosen}; select this one: paceline runtime select {installed.id}")


def _print_list(ranked: Sequence[tuple[Release, Verdict]], store: Store, as_json: bool) -> None:
    installed = {r.id for r in store.runtimes()}
    if as_json:
        output.as_json_text([_release_json(r, v, r.id in installed) for r, v in ranked])
        return
    rows = [
        [r.name, r.version, "installed" if r.id in installed else "available", _verdict_words(r, v)] for r, v in ranked
    ]
    output.table(["NAME", "VERSION", "STATE", "VERDICT"], rows)


def _verdict_words(release: Release, verdict: Verdict) -> str:
    if not verdict.ok:
        return f"{verdict.status.value}: {verdict.message}"
    notes = ["compatible"]
    if any(p.source for p in release.recipe.packages):
        notes.append("built here")
    if release.recipe.unpinned:
        notes.append("needs --allow-unpinned")
    return ", ".join(notes)


def _print_plan(plan: InstallPlan) -> None:
    if plan.already_installed:
        click.echo(f"{plan.release} is already installed in {plan.directory}")
        return
    click.echo(f"Would install {plan.release} in {plan.directory}")
    click.echo(_building(plan) if plan.built else "Nothing is compiled")
    output.table(
        ["PACKAGE", "VERSION", "FROM", "CHECKED"],
        [
            [p.name, p.version, p.index or ("source" if p.source else "wheel"), "sha256" if p.sha256 else "no"]
            for p in plan.packages
        ],
    )
    click.echo(f"Would select it for {', '.join(f.upper() for f in plan.selects) or 'no format'}")


def _building(plan: InstallPlan) -> str:
    took = f", which takes about {max(1, round(plan.expected_build_s / 60))} minutes" if plan.expected_build_s else ""
    return f"{', '.join(plan.built)} is compiled on this machine{took}"


def _runtime_json(installed: Runtime, selection: Selection) -> dict[str, Any]:
    return {
        "id": installed.id,
        "name": installed.name,
        **output.plain(installed),
        "selected_for": selection.formats_of(installed.id),
    }


def _release_json(release: Release, verdict: Verdict, installed: bool) -> dict[str, Any]:
    return {
        "id": release.id,
        "name": release.name,
        "engine": release.engine,
        "version": release.version,
        "platform": release.platform,
        "channel": release.channel,
        "formats": release.formats,
        "features": release.features,
        "installed": installed,
        "built_here": [p.name for p in release.recipe.packages if p.source],
        "expected_build_s": release.recipe.expected_build_s,
        "unpinned": [p.name for p in release.recipe.unpinned],
        "notes": release.notes,
        "verdict": verdict,
    }
