"""`paceline doctor`: what is wrong, or may surprise, and what to do about it."""

from __future__ import annotations

import os
import sys

import click

from paceline import paths
from paceline.cli import output
from paceline.store import Store


@click.command(epilog="Exit codes: 0 nothing is wrong, 1 something is.")
@click.option("--fix", is_flag=True, help="Delete what broken-off installations and ended processes left.")
@click.option("-v", "--verbose", is_flag=True, help="Also tell what is as it should be.")
@output.json_option
def doctor(fix: bool, verbose: bool, as_json: bool) -> None:
    """Look at everything, say what is wrong and how to mend it.

    Looked at are the environment, the home and the cache, plugins, runtimes, the selection, models, drivers, the
    package index and the port of the local API. Nothing is changed without --fix.
    """
    from paceline.doctor import Patient, Status, examine, mend
    from paceline.manager import plugin_generations

    patient = Patient(
        store=Store(paths.home()),
        cache=paths.cache(),
        models=(paths.models(), *paths.extra_models()),
        plugins=plugin_generations.loaded(),
        environ=os.environ,
    )
    fixed = mend(patient) if fix else 0
    findings = list(examine(patient))
    problems = sum(f.status is Status.PROBLEM for f in findings)
    if as_json:
        output.as_json_text({"findings": findings, "problems": problems, "fixed": fixed})
    else:
        if fixed:
            click.echo(f"deleted {fixed} things that ended processes left")
        for finding in findings:
            if verbose or finding.status is not Status.OK:
                click.echo(f"{finding.status.value}: {finding.message}")
                if finding.help:
                    click.echo(f"    {finding.help}")
        click.echo(f"{len(findings)} things looked at, {problems} of them wrong")
    if problems:
        sys.exit(1)
