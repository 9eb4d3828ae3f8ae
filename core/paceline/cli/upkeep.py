"""`paceline runtime verify`, `repair`, `remove`, `prune`: what is installed is whole, and no more than is needed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from paceline import paths
from paceline.cli import output
from paceline.manager import inventory
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.errors import PacelineError
    from paceline.packages.cache import Part


@click.command("verify", epilog="Exit codes: 0 all is whole, 1 something is not, 3 nothing matches.")
@click.argument("query", required=False)
@click.option("--quick", is_flag=True, help="Look at the sizes of programs and libraries alone, read no file.")
@output.json_option
def verify(query: str | None, quick: bool, as_json: bool) -> None:
    """Check every file of the installed runtimes, or of those that QUERY means, by its hash."""
    from paceline.store import health

    store = Store(paths.home())
    names = inventory.installed_names(store, query)
    found = {name: (health.quick if quick else health.full)(store.folder / name) for name in names}
    if as_json:
        output.as_json_text([{"id": name, **output.plain(state)} for name, state in found.items()])
    else:
        if not found:
            click.echo("no runtime is installed")
        for name, state in found.items():
            click.echo(f"{name}: {'whole' if state.ok else state.state}")
            for problem in state.problems:
                click.echo(f"  {problem}")
            if not state.ok:
                click.echo(f"  {store.how_to_mend(name)}")
    if not all(state.ok for state in found.values()):
        sys.exit(1)


@click.command("repair", epilog="Exit codes: 0 all is whole, 1 something could not be mended, 3 nothing matches.")
@click.argument("query", required=False)
@click.option("--dry-run", is_flag=True, help="Say what is damaged and change nothing.")
@output.json_option
def repair(query: str | None, dry_run: bool, as_json: bool) -> None:
    """Mend what `verify` finds damaged: install the same packages again beside it, then let the two change places.

    Packages come from the cache, or from the network where the cache lacks them. What is selected comes first, and one
    that cannot be mended keeps no other from it.
    """
    from paceline.cli.progress import shown
    from paceline.manager import mending
    from paceline.manager.plugin_generations import loaded as loaded_plugins
    from paceline.store import health

    store = Store(paths.home())
    names = mending.to_mend(store, query)
    damaged = [name for name in names if not health.full(store.folder / name).ok]
    failed: dict[str, PacelineError] = {}
    if damaged and not dry_run:
        loaded = loaded_plugins()
        for name in damaged:
            with shown() as progress:
                error = mending.attempt(name, store, loaded, progress)
            if error is not None:
                failed[name] = error
                _say_failed(error)
    if as_json:
        output.as_json_text({**mending.describe(names, damaged, failed), "dry_run": dry_run})
    elif not names:
        click.echo("no runtime is installed")
    else:
        for name in names:
            done = "would be repaired" if dry_run else "not repaired" if name in failed else "repaired"
            click.echo(f"{name}: {done if name in damaged else 'is whole'}")
    if failed:
        sys.exit(1)


def _say_failed(error: PacelineError) -> None:
    click.echo(f"error: {error.message}", err=True)
    if error.help:
        click.echo(f"help: {error.help}", err=True)


@click.command("remove")
@click.argument("query")
@click.option("--force", is_flag=True, help="Remove it even when it is selected or pinned.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed and remove nothing.")
@output.json_option
def remove(query: str, force: bool, dry_run: bool, as_json: bool) -> None:
    """Delete an installed runtime that no process uses; of one that is linked, the link alone."""
    store = Store(paths.home())
    linked = None
    if query in store.incomplete():
        name, size = query, None
        if dry_run:
            store.check_removable(name, force=force)
        else:
            store.remove_incomplete(name, force=force)
    else:
        chosen = store.get(query)
        name, size, linked = chosen.id, store.size(chosen), chosen.linked
        if dry_run:
            store.check_removable(name, force=force)
        else:
            store.remove(chosen, force=force)
    if as_json:
        output.as_json_text({"removed": name, "size_bytes": size, "linked": linked, "dry_run": dry_run})
    elif linked is not None:
        click.echo(f"{'Would unlink' if dry_run else 'Unlinked'} {name}; {linked} stays as it is")
    else:
        click.echo(f"{'Would remove' if dry_run else 'Removed'} {name} ({output.size(size)})")


@click.command("prune")
@click.option("--keep", default=1, show_default=True, type=click.IntRange(0), help="So many idle runtimes stay.")
@click.option("--cache", is_flag=True, help="Also delete from the download cache what nothing refers to.")
@click.option("--dry-run", is_flag=True, help="Say what would go and delete nothing.")
@output.json_option
def prune(keep: int, cache: bool, dry_run: bool, as_json: bool) -> None:
    """Delete the least recently used runtimes, what broken-off installations left, and old logs.

    A runtime that is selected, pinned, what `rollback` would return to, in use by a process or of a newer Paceline
    always stays; `--keep` counts the others.
    """
    from paceline.cli.progress import shown
    from paceline.manager.cleanup import clean_up, plan_cleanup
    from paceline.packages.cache import clear, look

    store = Store(paths.home())
    with shown() as progress:
        done = plan_cleanup(store, keep) if dry_run or not store.home.exists() else clean_up(store, keep, progress)
        parts = None
        if cache:
            parts = look(paths.cache()) if dry_run else clear(paths.cache(), progress)
    if as_json:
        output.as_json_text(done.describe(parts, dry_run=dry_run))
        return
    verb = "Would remove" if dry_run else "Removed"
    for runtime in done.runtimes:
        click.echo(f"{verb} {runtime.id} ({output.size(done.sizes[runtime.id])})")
    for name in done.incomplete:
        click.echo(f"{verb} {name}, which was incomplete")
    if done.leftovers or done.logs:
        click.echo(f"{verb} {len(done.leftovers)} leftovers of installations and {len(done.logs)} old logs")
    if parts is not None:
        _print_cache(parts, dry_run=dry_run)
    if not (done.runtimes or done.incomplete or done.leftovers or done.logs):
        click.echo("nothing to remove")
    for reason in done.kept:
        click.echo(f"Stays: {reason}")


def _print_cache(parts: Sequence[Part], *, dry_run: bool) -> None:
    freed = [f"{output.size(part.freed_bytes)} of {part.name}" for part in parts if part.freed_bytes]
    click.echo(f"Cache: {'would free' if dry_run else 'freed'} {', '.join(freed) or 'nothing'}")
    untold = [part.name for part in parts if part.freed_bytes is None]
    if untold:
        click.echo(f"Cache: also what nothing refers to of {', '.join(untold)}; how much is known when uv deletes it")
    if size := sum(part.size_bytes for part in parts):
        shared = sum(part.shared_bytes for part in parts)
        click.echo(f"Cache: takes {output.size(size)}, {output.size(shared)} of it shared with runtimes")
