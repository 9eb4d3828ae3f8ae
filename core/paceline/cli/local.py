"""`paceline runtime get PATH`: releases with a package of this machine."""

from __future__ import annotations

import platform
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from paceline import paths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from paceline.preferences import Policy
    from paceline.types import Release, Verdict

    Ranked = list[tuple[Release, Verdict]]


@contextmanager
def taken_from(source: Path, ranked: Ranked, policy: Policy) -> Iterator[tuple[Ranked, Path]]:
    """The releases of `ranked` made with the package at `source`, ranked anew, and the wheel; a folder is built first.

    Of a folder, one release is left: the best that says how the package is built.
    """
    from paceline.cli.progress import shown
    from paceline.manager.local_packages import built_wheel, from_wheel, package_at, with_package
    from paceline.manager.policy import choose
    from paceline.packages.wheels import read_wheel
    from paceline.survey import take_survey
    from paceline.verdict import rank

    source = paths.given(source)
    is_folder = not source.is_file()
    releases = with_package([r for r, _ in ranked], package_at(source), built=is_folder)
    if not is_folder:
        fitting = from_wheel(releases, read_wheel(source), platform.python_version())
        yield rank(fitting, take_survey(), channel=policy.channel), source
        return
    template = choose(
        rank(releases, take_survey(), channel=policy.channel), allow_unpinned=True, channel=policy.channel
    ).release
    click.echo(f"building {source} as {template.id} builds it", err=True)
    with ExitStack() as kept:
        with shown() as progress:
            wheel = kept.enter_context(built_wheel(source, template, cache=paths.cache(), progress=progress))
        yield rank(from_wheel([template], read_wheel(wheel), platform.python_version()), take_survey()), wheel
