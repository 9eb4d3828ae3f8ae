"""What an installation would do, in the words of every command that plans one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paceline.cli import output

if TYPE_CHECKING:
    from paceline.manager.plan import InstallPlan
    from paceline.manager.preview import Preview


def print_plan(would: Preview) -> None:
    """Print a plan whole: each package, what is compiled and fetched, the room it needs, what it is selected for."""
    plan = would.plan
    if plan.already_installed:
        click.echo(f"{plan.release} is already installed in {plan.directory}")
        return
    click.echo(f"Would install {plan.release} {'again ' if plan.broken else ''}in {plan.directory}")
    if plan.broken:
        click.echo(_BROKEN)
    if plan.notes:
        click.echo(plan.notes)
    click.echo(building(plan) if plan.built else "Nothing is compiled")
    if plan.download_bytes:
        click.echo(f"{fetching(plan)}, less what the cache already holds")
    output.table(
        ["PACKAGE", "VERSION", "FROM", "CHECKED"],
        [
            [
                p.name,
                p.version,
                p.file or p.index or ("source" if p.source else "wheel"),
                "sha256" if p.sha256 else "no",
            ]
            for p in plan.packages
        ],
    )
    for space in would.disk:
        needed = f"{'about ' if space.estimated else ''}{output.size(space.needed_bytes)}"
        click.echo(f"Needs {needed} in {space.folder}, {output.size(space.free_bytes)} are free")
    click.echo(f"Would select it for {', '.join(f.upper() for f in plan.selects) or 'no format'}")


def print_cost(plan: InstallPlan) -> None:
    """Say on stderr, before an installation, how long it may take and how much it may fetch."""
    if plan.already_installed:
        return
    if plan.broken:
        click.echo(f"{plan.release} is installed and broken; it is made again", err=True)
    if plan.built:
        click.echo(f"{building(plan)}; nothing is compiled that the cache already holds", err=True)
    if plan.download_bytes:
        click.echo(f"{fetching(plan)}, less what the cache already holds", err=True)


def cost(plan: InstallPlan) -> str:
    """The same for a row of a table: `compiled here, about 7 minutes; at most 72.1 MB to download`."""
    if plan.already_installed:
        return "already installed"
    took = f", about {_minutes(plan.expected_build_s)}" if plan.expected_build_s else ""
    said = ["installed and broken, made again"] if plan.broken else []
    if plan.built:
        said.append(f"compiled here{took}")
    if plan.download_bytes:
        said.append(f"at most {output.size(plan.download_bytes)} to download")
    return "; ".join(said)


def building(plan: InstallPlan) -> str:
    took = f", which takes about {_minutes(plan.expected_build_s)}" if plan.expected_build_s else ""
    return f"{', '.join(plan.built)} is compiled on this machine{took}"


def fetching(plan: InstallPlan) -> str:
    return f"At most {output.size(plan.download_bytes)} are downloaded"


_BROKEN = "What is installed there is broken; the new one takes its place"


def _minutes(seconds: float) -> str:
    n = max(1, round(seconds / 60))
    return f"{n} minute{'' if n == 1 else 's'}"
