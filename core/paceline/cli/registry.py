"""`paceline registry`: which signed registries are trusted; and, for those who publish one, to make and sign it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paceline import paths
from paceline.cli import output
from paceline.cli.group import Group
from paceline.cli.publishing import keys, renew, serve, sign
from paceline.cli.trusting import ls, refresh, remove, trust
from paceline.errors import NotFoundError

if TYPE_CHECKING:
    from paceline.types import Release

_FILE = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group(cls=Group)
def registry() -> None:
    """Trust and refresh signed registries; make, check, sign and serve one."""


for _command in (trust, ls, refresh, remove, sign, renew, serve, keys):
    registry.add_command(_command)


@registry.command("build")
@_FILE
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--no-fetch", is_flag=True, help="Leave packages unpinned whose index publishes no hashes.")
@click.option("--keep", is_flag=True, help="Keep the versions that are locked; look up their hashes and sizes anew.")
@click.option("--dry-run", is_flag=True, help="Say what would change and leave FILE as it is.")
def build(file: Path, names: tuple[str, ...], no_fetch: bool, keep: bool, dry_run: bool) -> None:
    """Lock the releases of FILE anew, or those named NAME (`llama.cpp-linux-x86_64-cpu`).

    Every release's roots are resolved in the package index you have configured, for its platform and every Python it
    admits, and hashes and sizes of all files are recorded. Wheels of pages that publish no hashes are fetched for them.
    FILE is written after each release.
    """
    from paceline.registry import registry_text
    from paceline.registry.locking import lock

    releases = list(_read(file))
    unknown = set(names) - {r.name for r in releases} - {r.id for r in releases}
    if unknown:
        raise NotFoundError(
            f"{file} has no release named {', '.join(sorted(unknown))}",
            help="`paceline registry verify FILE` lists what it has",
        )
    for i, release in enumerate(releases):
        if names and not {release.name, release.id} & set(names):
            continue
        locked = lock(
            release,
            cache=paths.cache() / "resolution",
            tell=lambda line: click.echo(line, err=True),
            fetch=not no_fetch,
            keep=keep,
        )
        before = {(p.name, p.version, p.sha256, p.size) for p in release.recipe.packages}
        after = {(p.name, p.version, p.sha256, p.size) for p in locked.recipe.packages}
        change = "unchanged" if locked == release else f"{len(after - before)} of {len(after)} packages changed"
        click.echo(f"{release.id}: {change}")
        releases[i] = locked
        if not dry_run and locked != release:
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            temporary.write_text(registry_text(releases), encoding="utf-8")
            temporary.replace(file)


@registry.command("verify")
@_FILE
@output.json_option
def verify(file: Path, as_json: bool) -> None:
    """Check FILE in every detail and list its releases. Exit codes: 0 sound, 1 not."""
    releases = _read(file)
    rows: list[dict[str, Any]] = [
        {
            "id": r.id,
            "channel": r.channel,
            "packages": len(r.recipe.packages),
            "build_packages": len(r.recipe.build_packages),
            "unpinned": [p.name for p in r.recipe.unpinned],
        }
        for r in releases
    ]
    if as_json:
        output.as_json_text(rows)
        return
    table = [[str(cell) for cell in (*list(row.values())[:4], ", ".join(row["unpinned"]))] for row in rows]
    output.table(["RELEASE", "CHANNEL", "PACKAGES", "FOR THE BUILD", "WITHOUT HASHES"], table)


def _read(file: Path) -> tuple[Release, ...]:
    """The releases of a file that is the user's own."""
    from paceline.registry import read_registry

    return read_registry(
        file,
        way_out="give a registry: a JSON file as Paceline's own registry.json is one",
        mend="mend the file at that place; `paceline registry verify FILE` checks it again",
    )
