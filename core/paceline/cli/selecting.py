"""`paceline runtime select`, `unselect`, `rollback`, `pin`, `unpin`, `hold`, `unhold`: which runtime is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paceline import paths
from paceline.cli import output
from paceline.errors import NotFoundError, UsageError
from paceline.manager import inventory
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from paceline.library import Library
    from paceline.store import Selection
    from paceline.types import Runtime

_DONE = {"pin": "Pinned", "unpin": "No longer pinned:", "unhold": "No longer held:"}

_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change and change nothing.")


@click.command("select")
@click.argument("query", required=False)
@click.option("--latest", is_flag=True, help="Take the newest installed version; without QUERY, for every selection.")
@click.option("--model", metavar="MODEL", help="Only for this model of the library.")
@_dry_run
@output.json_option
def select(query: str | None, latest: bool, model: str | None, dry_run: bool, as_json: bool) -> None:
    """Let an installed runtime serve every model format it can, or one model.

    `--latest` passes over versions that are held or broken and, without QUERY, leaves pinned selections.
    """
    store = Store(paths.home())
    if query is None:
        if not latest or model is not None:
            raise UsageError("a QUERY is missing", help="name a runtime: `paceline runtime ls` lists them")
        _select_latest(store, dry_run, as_json)
        return
    chosen = inventory.newest_installed(store, query) if latest else store.get(query)
    if model is not None:
        _select_for_model(store, chosen, model, dry_run, as_json)
        return
    before = store.selection()
    changes = tuple(f for f in chosen.formats if before.formats.get(f) != chosen.id)
    if dry_run:
        store.usable(chosen)
    else:
        changes = store.select(chosen)
    if as_json:
        output.as_json_text({"runtime": chosen.id, "selected": changes, "dry_run": dry_run})
        return
    for name in chosen.formats:
        already = "Already selected" if name not in changes else "Would select" if dry_run else "Selected"
        click.echo(f"{already} {chosen.id} for {name.upper()}")


@click.command("unselect")
@click.argument("model_format", metavar="[FORMAT]", required=False)
@click.option("--model", metavar="MODEL", help="Let the runtime of its format serve this model again.")
@_dry_run
@output.json_option
def unselect(model_format: str | None, model: str | None, dry_run: bool, as_json: bool) -> None:
    """Let nothing serve a model format, or take away the runtime of one model's own.

    That may be one you chose, or one that stands in because the selected one did not load the model; then the selected
    one is tried again.
    """
    if (model_format is None) == (model is None):
        raise UsageError("give a FORMAT or --model, one of them", help="such as `paceline runtime unselect gguf`")
    store = Store(paths.home())
    chosen = store.selection()
    if model is not None:
        name = inventory.model_of(model, chosen, _library)
        found = chosen.stand_in(name)
        taken = found.runtime if found is not None else chosen.models.get(name)
    else:
        name = str(model_format).lower()
        taken = chosen.formats.get(name)
    if taken is None:
        what = f"model {name} has no runtime of its own" if model is not None else f"nothing is selected for {name}"
        raise NotFoundError(what, help="`paceline runtime ls --json` shows what is selected")
    if not dry_run:
        store.unselect_model(name) if model is not None else store.unselect(name)
    if as_json:
        output.as_json_text({"unselected": taken, "for": name, "dry_run": dry_run})
    else:
        click.echo(f"{'Would unselect' if dry_run else 'Unselected'} {taken} for {name if model else name.upper()}")


@click.command("rollback")
@click.argument("model_format", metavar="[FORMAT]", required=False)
@_dry_run
@output.json_option
def rollback(model_format: str | None, dry_run: bool, as_json: bool) -> None:
    """Return to the last selection that worked: of FORMAT, or of every format that has one.

    What loaded a model here has worked; where nothing has, it is the last one that passed its smoke test. Versions that
    are held, broken or removed are passed over. A newer version that is left is held, so that no update takes it again,
    until you select it or `unhold` it. Nothing is downloaded, so this works without a network.

    Exit code 3 when there is nothing to return to.
    """
    store = Store(paths.home())
    wanted = model_format.lower() if model_format is not None else None
    before = store.selection()
    found = store.rollback_targets(wanted) if dry_run else store.rollback(wanted)
    left = (before.to_hold(name, runtime.id) for name, runtime in found.items())
    held = sorted({version for version in left if version is not None})
    if as_json:
        output.as_json_text({"changes": _moves(before.formats, found), "held": held, "dry_run": dry_run})
        return
    _print_moves(before.formats, found, "Would return" if dry_run else "Returned")
    for version in held:
        is_held = f"{version} {'would be' if dry_run else 'is'} held, so that no update takes it again"
        click.echo(f"{is_held}: `paceline runtime unhold {version}` ends that, and so does selecting it")


def _command(
    name: str,
    help: str,
    find: Callable[[Store, str], str],
    change: Callable[[Store, str], None],
) -> click.Command:
    """A command that finds the one version its QUERY means and marks it."""

    @click.command(name, help=help)
    @click.argument("query")
    @_dry_run
    @output.json_option
    def command(query: str, dry_run: bool, as_json: bool) -> None:
        store = Store(paths.home())
        found = find(store, query)
        if not dry_run:
            change(store, found)
        if as_json:
            output.as_json_text({"runtime": found, "change": name, "dry_run": dry_run})
        else:
            click.echo(f"Would {name} {found}" if dry_run else f"{_DONE[name]} {found}")

    return command


pin = _command(
    "pin",
    "Have updates and clean-up leave an installed runtime alone.",
    lambda store, query: store.get(query).id,
    Store.pin,
)
unpin = _command(
    "unpin",
    "Let updates and clean-up touch a runtime again.",
    lambda store, query: inventory.one_of(query, store.selection().pins, "pinned"),
    Store.unpin,
)
unhold = _command(
    "unhold",
    "Let this version be chosen automatically again.",
    lambda store, query: inventory.one_of(query, store.selection().holds, "held"),
    Store.unhold,
)


@click.command("hold")
@click.argument("query", required=False)
@click.option("--reason", metavar="TEXT", help="Why, for whoever asks later.")
@_dry_run
@output.json_option
def hold(query: str | None, reason: str | None, dry_run: bool, as_json: bool) -> None:
    """Never choose this version automatically, be it installed or not; `get` and `select` by its name still do.

    Without QUERY, list what is held, by you or because it failed, since when and why.
    """
    store = Store(paths.home())
    if query is None:
        if reason is not None:
            raise UsageError("a reason is given and no QUERY", help="name the version: `paceline runtime hold QUERY`")
        _print_holds(store.selection(), as_json)
        return
    from paceline.manager import plugin_generations

    found = inventory.installed_or_known(store, plugin_generations.loaded(), query)
    before = store.selection().holds.get(found)
    if not dry_run:
        store.hold(found, reason)
    if as_json:
        output.as_json_text({"runtime": found, "change": "hold", "dry_run": dry_run, "reason": reason})
    elif before is not None and reason is None:
        click.echo(f"Already held: {inventory.say_hold(found, before)}")
    else:
        click.echo(f"{'Would hold' if dry_run else 'Held'} {found}" + (f": {reason}" if reason else ""))


def _print_holds(chosen: Selection, as_json: bool) -> None:
    if as_json:
        output.as_json_text(inventory.describe_selection(chosen)["held"])
        return
    for release, held in chosen.holds.items():
        click.echo(inventory.say_hold(release, held))
    if not chosen.holds:
        click.echo("nothing is held")


def _select_latest(store: Store, dry_run: bool, as_json: bool) -> None:
    before = store.selection().formats
    found = store.latest() if dry_run else store.select_latest()
    if as_json:
        output.as_json_text({"changes": _moves(before, found), "dry_run": dry_run})
    elif found:
        _print_moves(before, found, "Would select" if dry_run else "Selected")
    else:
        click.echo("every selection is the newest installed version")


def _select_for_model(store: Store, chosen: Runtime, text: str, dry_run: bool, as_json: bool) -> None:
    model = _library().get(text)
    if model.format not in chosen.formats:
        raise UsageError(
            f"{chosen.id} serves {', '.join(chosen.formats)}, and {model.id} is a {model.format} model",
            help=f"choose a runtime for {model.format}: `paceline runtime ls` lists them",
        )
    if dry_run:
        store.usable(chosen)
    else:
        store.select_for_model(chosen, model.id)
    if as_json:
        output.as_json_text({"runtime": chosen.id, "model": model.id, "dry_run": dry_run})
    else:
        click.echo(f"{'Would select' if dry_run else 'Selected'} {chosen.id} for the model {model.id}")


def _library() -> Library:
    from paceline.library import open_library
    from paceline.manager import plugin_generations

    return open_library(plugin_generations.loaded())


def _moves(before: Mapping[str, str], found: Mapping[str, Runtime]) -> list[dict[str, str | None]]:
    return [{"format": f, "from": before.get(f), "to": r.id} for f, r in found.items()]


def _print_moves(before: Mapping[str, str], found: Mapping[str, Runtime], done: str) -> None:
    for name, runtime in found.items():
        click.echo(f"{done} {runtime.id} for {name.upper()}, instead of {before.get(name) or 'none'}")
