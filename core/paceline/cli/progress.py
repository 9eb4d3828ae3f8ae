"""An installation's progress on standard error: a bar on a terminal, a line per phase elsewhere."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

import click

from paceline.cli import output
from paceline.progress import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn, Task

_WORDS = {
    Phase.SEARCH: "searching",
    Phase.WAIT: "waiting",
    Phase.ENVIRONMENT: "environment",
    Phase.DOWNLOAD: "fetching",
    Phase.PACKAGES: "packages",
    Phase.BUILD: "compiling",
    Phase.CHECK: "checking",
    Phase.PUBLISH: "finishing",
    Phase.DONE: "done",
}


class Shown(Protocol):
    """A `Progress` that can make room."""

    def __call__(self, phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None: ...

    def paused(self) -> AbstractContextManager[None]:
        """Show nothing while something else is printed or asked."""


@contextmanager
def shown() -> Iterator[Shown]:
    """Show the progress of what happens inside."""
    if sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _Lines()


class _Lines:
    """One line when a phase begins, one per tenth of a download or a build, and one for each reason to wait."""

    def __init__(self) -> None:
        self._last: tuple[Phase, int, str] | None = None

    def __call__(self, phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
        counted = total is not None and total > 0 and phase in (Phase.BUILD, Phase.DOWNLOAD)
        waits = message if phase is Phase.DOWNLOAD else ""
        step = (phase, 10 * done // total if counted and total else 0, waits.partition(";")[0])
        if step == self._last or phase is Phase.DONE:  # the command says itself how it ended
            return
        self._last = step
        count = ""
        if counted:
            count = f" {done}/{total}" if phase is Phase.BUILD else f" {output.size(done)} of {output.size(total)}"
        click.echo(f"{_WORDS[phase]}{count}{': ' + message if message else ''}", err=True)

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def _bar() -> Iterator[Shown]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), count_column(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars)


class _Bar:
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("starting", total=None, phase=None)
        self._last: Phase | None = None

    def __call__(self, phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
        if phase is not self._last:  # so that the rate of a download is its own
            self._bars.reset(self._task)
            self._last = phase
        words = f"{_WORDS[phase]}{': ' + message if message else ''}"
        self._bars.update(self._task, description=words, completed=done, total=total, phase=phase)

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._bars.stop()
        try:
            yield
        finally:
            self._bars.start()


def count_column() -> ProgressColumn:
    """A column of steps, or while something is downloaded of bytes, their rate and the time that is left."""
    from rich.progress import (
        DownloadColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Count(ProgressColumn):
        _steps = MofNCompleteColumn()
        _bytes = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

        def render(self, task: Task) -> Text:
            if task.fields["phase"] is not Phase.DOWNLOAD:
                return self._steps.render(task)
            return Text("  ").join(column.render(task) for column in self._bytes)

    return Count()
