"""`paceline bundle`: releases with all their packages in one file, for machines without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paceline import network, paths
from paceline.cli import output
from paceline.cli.group import Group
from paceline.cli.policy import accepts, policy_options
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.errors import UnpinnedError
    from paceline.preferences import Policy
    from paceline.types import Release, Verdict

_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group(
    cls=Group, epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing matches, or nothing that runs here."
)
def bundle() -> None:
    """Carry releases to machines without a network, in one file."""


@bundle.command("create")
@click.argument("queries", nargs=-1, required=True, metavar="RELEASE...")
@click.option("-o", "--output", "file", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--platform", "for_platform", help="Choose among the releases of this platform: `mac-arm64-metal`.")
@click.option("--python", "pythons", multiple=True, help="Versions of Python it is for (`3.12`); by default this one.")
@policy_options()
@output.json_option
def create(
    queries: Sequence[str],
    file: Path,
    for_platform: str | None,
    pythons: tuple[str, ...],
    policy: Policy,
    as_json: bool,
) -> None:
    """Write a bundle of the releases that each RELEASE means: the best for this machine, or those of --platform.

    As with `runtime get`, what is held, or younger than the minimum age, is taken where its version is named.
    A RELEASE that only an installed runtime has the name of, such as one made with a wheel of this machine, is bundled
    as it was installed, with that wheel. A version that is not listed is looked for in the package index.

    What is fetched for it is checked by the hashes of the registry. Packages whose index publishes none are fetched
    where that is accepted, recorded, and marked in the bundle: who installs it has to accept them, too.

    A bundle may be made on another kind of machine than the one it is for. What is built from source is built there,
    which takes a compiler, and no network.
    """
    from paceline.cli.progress import shown
    from paceline.manager import bundling, plugin_generations
    from paceline.manager.bundles import create as write
    from paceline.packages import python_versions
    from paceline.store.digests import sha256_of

    def accept(error: UnpinnedError) -> bool:
        return not as_json and accepts(error, "Fetch it, and require the same files from then on?")

    bundling.check_pythons(pythons)
    store, python = Store(paths.home()), pythons or (python_versions.here(),)
    content = bundling.chosen(
        queries,
        store,
        plugin_generations.loaded(),
        policy,
        pythons=python,
        platform=for_platform,
        accept=accept,
        asking=output.say,
    )
    for remark in content.remarks:
        output.note(remark)
    with shown() as progress:
        made = write(
            content.releases,
            file,
            python,
            paths.cache(),
            progress,
            store=store,
            wheels=content.wheels,
            accepted=content.accepted,
        )
    described = {
        "file": file,
        "size_bytes": file.stat().st_size,
        "sha256": sha256_of(file),
        **bundling.describe(made),
    }
    if as_json:
        output.as_json_text(described)
        return
    click.echo(f"Wrote {file} ({output.size(described['size_bytes'])}, sha256 {described['sha256']})")
    click.echo(f"For Python {', '.join(made.pythons)}: {', '.join(r.id for r in made.releases)}")
    if unpinned := sorted({p.name for r in made.releases for p in r.recipe.unpinned}):
        click.echo(f"Recorded what {', '.join(unpinned)} is there; nothing else is bundled in its place from now on")


@bundle.command("ls")
@_FILE
@output.json_option
def ls(file: Path, as_json: bool) -> None:
    """List what FILE holds and whether this machine can run it; every file in it is compared with its hash."""
    from paceline.manager import bundling
    from paceline.manager.bundles import read_bundle

    found = read_bundle(file)
    found.check()
    verdicts = bundling.judged(found)
    if as_json:
        output.as_json_text(bundling.describe(found, verdicts))
        return
    click.echo(f"For Python {', '.join(found.pythons)}")
    rows = [[r.id, verdicts[r.id].status.value, _remark(r, verdicts[r.id])] for r in found.releases]
    output.table(["RELEASE", "VERDICT", ""], rows)
    click.echo()
    output.table(["FILE", "SIZE", "SHA256"], [[f.name, output.size(f.size), f.sha256] for f in found.listed])


@bundle.command("install")
@_FILE
@click.option("--allow-incompatible", is_flag=True, help="Install what this machine is said not to run.")
@policy_options(without=("channel", "minimum_age", "prefer"))
@output.json_option
def install(file: Path, allow_incompatible: bool, policy: Policy, as_json: bool) -> None:
    """Install the releases of FILE that this machine can run. No request leaves the machine.

    Packages that no index publishes hashes of are asked for, or taken with --allow-unpinned, as by `runtime get`.
    """
    from paceline.cli.progress import shown
    from paceline.manager import bundling, plugin_generations
    from paceline.manager.bundles import read_bundle
    from paceline.manager.installation import install as make

    network.go_offline()
    found = read_bundle(file)
    found.check()
    releases = bundling.that_run_here(found, allow_incompatible=allow_incompatible)
    loaded, store = plugin_generations.loaded(), Store(paths.home())
    bundling.check_accepted(
        releases, store, accept=lambda error: policy.allow_unpinned or (not as_json and accepts(error))
    )
    done = []
    for release in releases:
        with shown() as progress:
            engine = loaded.engine(release.engine)
            done.append(make(release, store, engine, progress, allow_unpinned=True, supply=found))
    chosen = store.selection()
    if as_json:
        output.as_json_text([{"id": r.id, "selected_for": chosen.formats_of(r.id), **output.plain(r)} for r in done])
        return
    for runtime in done:
        formats = ", ".join(f.upper() for f in chosen.formats_of(runtime.id))
        click.echo(f"Installed {runtime.id}{f', selected for {formats}' if formats else ''}")


def _remark(release: Release, verdict: Verdict) -> str:
    if not verdict.ok:
        return verdict.message
    return "needs --allow-unpinned" if release.recipe.unpinned else ""
