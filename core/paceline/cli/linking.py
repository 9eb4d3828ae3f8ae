"""`paceline runtime link`: an environment built by hand as a runtime."""

from __future__ import annotations

from pathlib import Path

import click

from paceline import paths
from paceline.cli import output
from paceline.store import Store


@click.command("link")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--engine", help="The engine it holds, where its packages do not say.")
@output.json_option
def link(name: str, path: Path, engine: str | None, as_json: bool) -> None:
    """Use the environment at PATH, built by hand, as a runtime called NAME.

    PATH is the folder of a virtual or conda environment, or its interpreter. The engine in it is started once, and must
    generate. Paceline never changes, updates, repairs or cleans it up; `paceline runtime remove NAME` unlinks it.

    Exit codes: 0 done, 1 it does not start, 2 wrong usage, 3 it holds no known engine.
    """
    from paceline.cli.progress import shown
    from paceline.manager import inventory, plugin_generations
    from paceline.manager.linking import link as make_link

    store, loaded = Store(paths.home()), plugin_generations.loaded()
    if engine is not None:
        loaded.engine(engine)
    taken = {release.name for release in inventory.known(store, loaded).releases}
    with shown() as progress:
        linked = make_link(name, path, store, loaded.engines, progress, engine=engine, taken=taken)
    version = store.manifest(linked)["linked"]["version"]
    selected = store.selection().formats_of(linked.id)
    if as_json:
        output.as_json_text({"id": linked.id, **output.plain(linked), "engine_version": version, "selected": selected})
        return
    click.echo(f"Linked {linked.id} to {linked.linked}, which holds {linked.engine} {version}")
    for model_format in linked.formats:
        if model_format in selected:
            click.echo(f"Selected for {model_format.upper()}")
        else:
            click.echo(f"To use it for {model_format.upper()}: paceline runtime select {linked.id}")
