"""`paceline runtime update`: replace selected runtimes by newer releases, each installed beside the old one first."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from paceline import network, paths
from paceline.cli import output
from paceline.errors import PacelineError
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paceline.manager.updates import Kept, Update
    from paceline.plugins import Plugins
    from paceline.types import Release, Runtime, Verdict

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
@click.option("--registry-only", is_flag=True, help="Look at the registry alone, not at the package index.")
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

    New releases come from the registry and from the package index you have configured. A new runtime is installed
    beside the old one and checked; only then it is selected. The old one stays, and what runs on it goes on.

    Exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage, 100 with --check when there are updates.
    """
    from paceline import plugins

    store, loaded = Store(paths.home()), plugins.load()
    selected = _selected(store, query)
    search = _Search(store, loaded, timedelta(days=minimum_age), channel)
    if not registry_only:
        search.ask_upstream(selected.values())
    updates, kept = search.plan(selected, allow_unpinned=allow_unpinned)
    done: list[str] = []
    if not check and not dry_run:
        for step in updates:
            done.append(_apply(step, store, loaded, allow_unpinned).id)
    if as_json:
        output.as_json_text(_json(updates, kept, search.problems, done))
    else:
        _print(updates, kept, search.problems, applied=bool(done))
    if check and updates:
        return UPDATES_EXIST
    return 1 if search.problems and not updates else 0


def _selected(store: Store, query: str | None) -> dict[str, Runtime]:
    """The runtimes to look at, by the format they serve."""
    by_format = {name: store.selected(name) for name in store.selection().formats}
    found = {name: runtime for name, runtime in by_format.items() if runtime is not None}
    if query is None:
        return found
    from paceline import query as queries

    wanted = {r.id for r in queries.select(query, found.values())}
    if not wanted:
        store.get(query)  # says so if it is not even installed
        raise PacelineError(
            f"no selected runtime matches {query!r}",
            help="only selected runtimes are updated: `paceline runtime get` installs another release beside them",
        )
    return {name: runtime for name, runtime in found.items() if runtime.id in wanted}


@dataclass
class _Search:
    store: Store
    plugins: Plugins
    minimum_age: timedelta
    channel: str
    problems: list[str] = field(default_factory=list)
    """Why a source could not be asked."""

    def ask_upstream(self, runtimes: Iterable[Runtime]) -> None:
        """Look for newer releases in the package index, and remember them."""
        from paceline.registry import upstream

        if network.is_offline():
            self.problems.append("Paceline is offline: the package index was not asked")
            return
        found = []
        for name, engine in {r.name: r.engine for r in runtimes}.items():
            source = self.plugins.engines[engine].upstream if engine in self.plugins.engines else None
            template = next((release for release in self._releases() if release.name == name), None)
            if source is None or template is None or not upstream.can_be_asked(template, source):
                continue
            click.echo(f"asking the package index for {source.package} newer than {template.version}", err=True)
            try:
                newer = upstream.newest(
                    template,
                    source,
                    cache=paths.cache(),
                    minimum_age=self.minimum_age,
                    prerelease=self.channel == "beta",
                )
            except PacelineError as error:
                self.problems.append(error.message)
                continue
            if newer is not None:
                found.append(newer)
        if found:
            upstream.remember(upstream.found_file(self.store.home), found)

    def plan(
        self, selected: dict[str, Runtime], *, allow_unpinned: bool
    ) -> tuple[tuple[Update, ...], tuple[Kept, ...]]:
        from paceline.manager.updates import plan_updates

        channels = ("stable", "beta") if self.channel == "beta" else ("stable",)
        chosen = self.store.selection()
        return plan_updates(
            selected,
            self._ranked(),
            channels=channels,
            pinned=chosen.pins,
            held=chosen.holds,
            allow_unpinned=allow_unpinned,
        )

    def _releases(self) -> tuple[Release, ...]:
        """Every known release, by name and then newest first."""
        from paceline.registry import load_registry
        from paceline.registry.upstream import found_file

        return load_registry(self.plugins, found=found_file(self.store.home)).releases

    def _ranked(self) -> list[tuple[Release, Verdict]]:
        """The same, each with its verdict on this machine."""
        from paceline.survey import take_survey
        from paceline.verdict import judge

        facts = take_survey()
        return [(release, judge(release, facts)) for release in self._releases()]


def _apply(step: Update, store: Store, plugins: Plugins, allow_unpinned: bool) -> Runtime:
    from paceline.cli.progress import shown
    from paceline.manager.installation import install

    click.echo(f"updating {step.runtime.id} to {step.release.version}", err=True)
    with shown() as progress:
        runtime = install(
            step.release, store, plugins.engine(step.release.engine), progress, allow_unpinned=allow_unpinned
        )
    store.select(runtime)
    return runtime


def _print(updates: Iterable[Update], kept: Iterable[Kept], problems: Iterable[str], *, applied: bool) -> None:
    rows = [[u.runtime.id, u.release.version, "updated" if applied else "would be updated"] for u in updates]
    rows += [[k.runtime.id, k.newer.version if k.newer else "", f"stays: {k.reason}"] for k in kept]
    if rows:
        output.table(["RUNTIME", "NEWER", ""], rows)
    else:
        click.echo("no runtime is selected: `paceline runtime get` installs the best for this machine")
    for problem in problems:
        click.echo(f"warning: {problem}", err=True)


def _json(updates: Iterable[Update], kept: Iterable[Kept], problems: list[str], done: list[str]) -> dict[str, Any]:
    return {
        "updates": [{"runtime": u.runtime.id, "formats": u.formats, "release": u.release.id} for u in updates],
        "kept": [{"runtime": k.runtime.id, "reason": k.reason, "newer": k.newer and k.newer.id} for k in kept],
        "problems": problems,
        "installed": done,
    }
