"""`paceline runtime survey`: what this machine has, what can run here, and what the installed engines see."""

from __future__ import annotations

import click

from paceline import paths
from paceline.cli import output
from paceline.errors import NotFoundError
from paceline.store import Store


@click.command("survey", epilog="Exit codes: 0 done, 3 nothing matches.")
@click.argument("query", required=False)
@click.option("--refresh", is_flag=True, help="Ask drivers, compilers and engines anew, whatever is remembered.")
@output.json_option
def survey(query: str | None, refresh: bool, as_json: bool) -> None:
    """Show the facts about this machine, each with its source, the verdict on every release, and what engines see.

    With QUERY only the releases and the installed runtimes that it means. What programs answer is remembered in the
    cache folder until the driver, the cards, the program, the runtime or the boot is another one.
    """
    from paceline import query as queries
    from paceline.manager import inventory, plugin_generations
    from paceline.manager.engine_survey import ask_engine
    from paceline.survey import describe, known_survey
    from paceline.verdict import rank

    store, loaded = Store(paths.home()), plugin_generations.loaded()
    releases = inventory.known(store, loaded).releases
    matching = queries.select(query, releases) if query else releases
    installed = queries.select(query, store.runtimes()) if query else store.runtimes()
    if query and not (matching or installed):
        raise NotFoundError(
            f"no release and no installed runtime matches {query!r}",
            help="`paceline runtime get --list` shows every release",
        )
    facts = known_survey(refresh=refresh)
    ranked = rank(matching, facts)
    seen = [
        ask_engine(r, loaded.engines[r.engine], store, facts, paths.cache(), refresh=refresh)
        for r in installed
        if r.engine in loaded.engines
    ]
    if as_json:
        verdicts = [{"release": release.id, **output.plain(verdict)} for release, verdict in ranked]
        output.as_json_text({"facts": facts, "releases": verdicts, "runtimes": seen})
        return
    output.table(["FACT", "VALUE", "SOURCE"], describe(facts))
    click.echo()
    output.table(
        ["RELEASE", "VERDICT", ""], [[r.id, v.status.value, "" if v.ok else output.reason(r, v)] for r, v in ranked]
    )
    if seen:
        click.echo()
        rows = [
            [s.runtime, s.problem or "" if s.devices is None else ", ".join(s.devices) or "none", s.source]
            for s in seen
        ]
        output.table(["RUNTIME", "DEVICES IT SEES", "SOURCE"], rows)
