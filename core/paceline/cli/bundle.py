"""`paceline bundle`: releases with all their packages in one file, for machines without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paceline import network, paths
from paceline.cli import output
from paceline.cli.group import Group
from paceline.cli.policy import policy_options
from paceline.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.preferences import Policy

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
@policy_options(without=("allow_unpinned",))
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
    as it was installed, with that wheel.

    What is fetched for it is checked by the hashes of the registry. A bundle may be made on another kind of machine
    than the one it is for. What is built from source is built there, which takes a compiler, and no network.
    """
    from paceline import plugins
    from paceline.cli.progress import shown
    from paceline.manager import bundling
    from paceline.manager.bundles import create as write
    from paceline.store.digests import sha256_of

    bundling.check_pythons(pythons)
    content = bundling.chosen(queries, Store(paths.home()), plugins.load(), policy, platform=for_platform)
    for remark in content.remarks:
        output.note(remark)
    python = pythons or (bundling.python_here(),)
    with shown() as progress:
        made = write(content.releases, file, python, paths.cache(), progress, wheels=content.wheels)
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
    rows = [[r.id, v.status.value, "" if v.ok else v.message] for r in found.releases if (v := verdicts[r.id])]
    output.table(["RELEASE", "VERDICT", ""], rows)
    click.echo()
    output.table(["FILE", "SIZE", "SHA256"], [[f.name, output.size(f.size), f.sha256] for f in found.listed])


@bundle.command("install")
@_FILE
@click.option("--allow-incompatible", is_flag=True, help="Install what this machine is said not to run.")
@output.json_option
def install(file: Path, allow_incompatible: bool, as_json: bool) -> None:
    """Install the releases of FILE that this machine can run. No request leaves the machine."""
    from paceline import plugins
    from paceline.cli.progress import shown
    from paceline.manager import bundling
    from paceline.manager.bundles import read_bundle
    from paceline.manager.installation import install as make

    network.go_offline()
    found = read_bundle(file)
    found.check()
    releases = bundling.that_run_here(found, allow_incompatible=allow_incompatible)
    loaded, store = plugins.load(), Store(paths.home())
    done = []
    for release in releases:
        with shown() as progress:
            done.append(make(release, store, loaded.engine(release.engine), progress, supply=found))
    chosen = store.selection()
    if as_json:
        output.as_json_text([{"id": r.id, "selected_for": chosen.formats_of(r.id), **output.plain(r)} for r in done])
        return
    for runtime in done:
        formats = ", ".join(f.upper() for f in chosen.formats_of(runtime.id))
        click.echo(f"Installed {runtime.id}{f', selected for {formats}' if formats else ''}")
