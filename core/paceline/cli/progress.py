"""An installation's progress on standard error: a bar on a terminal, a line per phase elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from paceline.progress import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paceline.progress import Progress

_WORDS = {
    Phase.WAIT: "waiting",
    Phase.ENVIRONMENT: "environment",
    Phase.DOWNLOAD: "downloading",
    Phase.PACKAGES: "packages",
    Phase.BUILD: "compiling",
    Phase.CHECK: "checking",
    Phase.PUBLISH: "finishing",
    Phase.DONE: "done",
}


@contextmanager
def shown() -> Iterator[Progress]:
    """Show the progress of what happens inside."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _Lines()


class _Lines:
    """One line when a phase begins, and one per tenth of a long build."""

    def __init__(self) -> None:
        self._last: tuple[Phase, int] | None = None

    def __call__(self, phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
        step = (phase, 10 * done // total if total and phase is Phase.BUILD else 0)
        if step == self._last or phase is Phase.DONE:  # the command says itself how it ended
            return
        self._last = step
        count = f" {done}/{total}" if total and phase is Phase.BUILD else ""
        click.echo(f"{_WORDS[phase]}{count}{': ' + message if message else ''}", err=True)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def progress(phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
            words = f"{_WORDS[phase]}{': ' + message if message else ''}"
            bars.update(task, description=words, completed=done, total=total)

        yield progress
