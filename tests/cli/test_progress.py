"""What people see of an installation that is under way."""

from __future__ import annotations

import io

from rich.console import Console
from rich.progress import Progress

from paceline.cli.progress import _Lines, count_column
from paceline.progress import Phase


def test_lines(capsys):
    lines = _Lines()
    for n in range(0, 2_000_001, 10_000):
        lines(Phase.DOWNLOAD, n, 2_000_000)
    lines(Phase.DOWNLOAD, 10, None)
    for left in (3, 2, 1):
        lines(Phase.DOWNLOAD, 10, None, f"a.whl: the server answered 503; trying again in {left} s")
    for n in range(100):
        lines(Phase.BUILD, n, 100, "a")
    lines(Phase.DONE, message="installed")

    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["fetching 0 B of 2.0 MB", "fetching 200.0 KB of 2.0 MB"]
    assert said[10:13] == [
        "fetching 2.0 MB of 2.0 MB",
        "fetching",
        "fetching: a.whl: the server answered 503; trying again in 3 s",
    ]
    assert said[13:] == [f"compiling {n}/100: a" for n in range(0, 100, 10)]


def test_a_bar_counts_bytes_with_rate_and_time_left_or_steps():
    now = 0.0
    console = Console(file=io.StringIO(), width=120)
    bars = Progress(count_column(), console=console, get_time=lambda: now, auto_refresh=False)
    task = bars.add_task("", total=10_000_000, phase=Phase.DOWNLOAD)
    for second in range(5):
        now = float(second)
        bars.update(task, completed=second * 1_000_000)
    with console.capture() as shown:
        console.print(bars.get_renderable())
    assert shown.get().split() == ["4.0/10.0", "MB", "1.0", "MB/s", "0:00:06"]

    bars.update(task, completed=3, total=9, phase=Phase.BUILD)
    with console.capture() as shown:
        console.print(bars.get_renderable())
    assert shown.get().strip() == "3/9"
