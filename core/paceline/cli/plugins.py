"""`paceline plugins`: what was found, and why something is not active; third-party ones as packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paceline import paths
from paceline.cli import output
from paceline.cli.group import Group
from paceline.errors import UsageError
from paceline.manager.plugin_listing import NEXT_START, describe_change, describe_plugins, source, state_of
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from paceline.cli.progress import Shown
    from paceline.manager.plugin_packages import Change
    from paceline.manager.plugin_trial import Trial
    from paceline.plugin_folder import Held, State
    from paceline.plugins import Plugin, Plugins

_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask; --json never does.")
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change and change nothing.")


@click.group(cls=Group, invoke_without_command=True)
@output.json_option
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List engine plugins and why one is not active; install, update and remove third-party ones.

    Those that are installed here lie in Paceline's home, after everything else on the path. They use the packages that
    Paceline itself has, in their versions, and replace none of them.
    """
    if context.invoked_subcommand is None:
        _list(as_json)


@plugins.command("ls")
@output.json_option
def ls(as_json: bool) -> None:
    """List engine plugins, where each came from, and why one is not active."""
    _list(as_json)


@plugins.command("install")
@click.argument("wanted", nargs=-1, required=True, metavar="PLUGIN...")
@_yes
@_dry_run
@output.json_option
def install(wanted: tuple[str, ...], yes: bool, dry_run: bool, as_json: bool) -> None:
    """Install plugins: names (`paceline-echo`, `paceline-echo==1.0`) from the package index, wheels, or folders.

    What would be installed is shown before any of it runs, but for the build script of a folder. Then the plugins are
    loaded once in a process of their own; if that fails, nothing has changed.
    """
    from paceline.cli.progress import shown
    from paceline.manager.plugin_packages import install as change

    with shown() as progress:
        asking = _asking("install", yes, dry_run, as_json, progress)
        done = change(wanted, Store(paths.home()), cache=paths.cache(), confirm=asking, progress=progress)
    _tell(done, as_json)


@plugins.command("update")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@_yes
@_dry_run
@output.json_option
def update(names: tuple[str, ...], yes: bool, dry_run: bool, as_json: bool) -> None:
    """Update plugins that were installed here, or all of them, as far as this Paceline's own packages allow."""
    from paceline.cli.progress import shown
    from paceline.manager.plugin_packages import update as change

    with shown() as progress:
        asking = _asking("update", yes, dry_run, as_json, progress)
        done = change(names, Store(paths.home()), cache=paths.cache(), confirm=asking, progress=progress)
    _tell(done, as_json)


@plugins.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@_yes
@_dry_run
@output.json_option
def remove(names: tuple[str, ...], yes: bool, dry_run: bool, as_json: bool) -> None:
    """Remove plugins that were installed here, with what only they needed. Their runtimes stay."""
    from paceline.cli.progress import shown
    from paceline.manager.plugin_packages import remove as change

    with shown() as progress:
        asking = _asking("remove", yes, dry_run, as_json, progress)
        done = change(names, Store(paths.home()), confirm=asking, progress=progress)
    _tell((done, None) if done is not None else None, as_json)


def _list(as_json: bool) -> None:
    from paceline.manager import plugin_generations

    loaded, state = plugin_generations.loaded(), state_of(paths.home())
    if as_json:
        output.as_json_text(describe_plugins(loaded, state))
        return
    output.table(
        ["PLUGIN", "STATE", "DISTRIBUTION", "FROM", "ENGINES", "FORMATS"],
        [_row(p, loaded, state) for p in loaded.plugins],
    )
    for p in loaded.plugins:
        if p.error:
            origin = f" ({_origin(p)})" if p.distribution else ""
            click.echo(f"\n{p.name}{origin}: {p.error}")


def _row(p: Plugin, loaded: Plugins, state: State) -> list[str]:
    served = (f for name in p.engines for f in loaded.engines[name].formats)
    formats = dict.fromkeys((*served, *p.formats))
    return [p.name, p.state.value, _origin(p), source(p, state) or "", ", ".join(p.engines), ", ".join(formats)]


def _origin(p: Plugin) -> str:
    return f"{p.distribution or ''} {p.version or ''}".strip()


def _asking(verb: str, yes: bool, dry_run: bool, as_json: bool, progress: Shown) -> Callable[[Change], bool]:
    """Shows a change, and asks for it; with --json it cannot ask, and raises UsageError unless `yes`."""

    def confirm(change: Change) -> bool:
        with progress.paused():
            return ask(change)

    def ask(change: Change) -> bool:
        if not (as_json and yes) or dry_run:
            _show(change, as_json)
        if dry_run:
            return False
        if as_json and not yes:
            raise UsageError(
                f"nothing was changed: with --json nobody is asked whether to {verb} what is shown",
                help=f"look at it, then `paceline plugins {verb} --json -y …`",
            )
        return yes or click.confirm(f"{verb.capitalize()}?", err=True)

    return confirm


def _show(change: Change, as_json: bool) -> None:
    if as_json:
        output.as_json_text(describe_change(change))
        return
    before = {p.name: p.version for p in change.before.packages}
    added = {p.name for p in change.added}
    for package in change.added:
        request = change.after.requests.get(package.name)
        origin = f", from {request.source or 'index'}" if request else ", needed by it"
        replaced = f" instead of {before[package.name]}" if package.name in before else ""
        click.echo(f"+ {package.name} {package.version}{replaced}{origin}, {output.size(package.size_bytes)}")
        click.echo(f"    {_hash_words(package)}")
        for name, module in package.entry_points.items():
            click.echo(f"    plugin {name}: {module}")
        if package.entry_points:
            claimed = ", ".join(package.engines) if package.engines else "not said; known once it is loaded"
            click.echo(f"    engines it claims: {claimed}")
    for package in change.gone:
        if package.name not in added:
            click.echo(f"- {package.name} {package.version}")
    if not change.added and not change.gone:
        click.echo("nothing changes")


def _hash_words(package: Held) -> str:
    more = f" (one of {len(package.sha256)} files)" if len(package.sha256) > 1 else ""
    return f"sha256 {package.sha256[0]}{more}"


def _tell(done: tuple[Change, Trial | None] | None, as_json: bool) -> None:
    if done is None:
        if not as_json:
            click.echo("nothing was changed", err=True)
        return
    change, trial = done
    if as_json:
        output.as_json_text(describe_change(change, trial))
        return
    for name, engines in (trial.engines if trial else {}).items():
        click.echo(f"{name} is active{': ' if engines else ''}{', '.join(engines)}")
    if trial is not None and trial.slow:
        click.echo(f"warning: loading them adds {trial.seconds:.1f} s to every start of Paceline", err=True)
    for package in change.gone:
        if package.name not in change.after.requests and package.name in change.before.requests:
            click.echo(f"Removed {package.name} {package.version}")
    click.echo(NEXT_START[0].upper() + NEXT_START[1:])
