"""Run a command that ends when this process does, however it ends, with everything the command started."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    import psutil

_GUARD = str(Path(__file__).with_name("guard.py"))


def run(
    argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, on_line: Callable[[str], None] | None = None
) -> int:
    """Run `argv` to its end and return its exit status (128 + the signal's number for one that was killed).

    Every line of its output and error stream is given to `on_line`. When that raises, or on Ctrl-C, the command is
    killed with everything that it started before the exception goes on.
    """
    process = subprocess.Popen(
        _guarded(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if on_line is not None:
                on_line(line)
        return process.wait()
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@asynccontextmanager
async def running(
    argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, grace_s: float
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `argv` beside an event loop; its output and error stream come from `stdout`, lines of at most 1 MiB.

    When the block is left, what still runs is asked to end and, after `grace_s` seconds, killed with everything that it
    started.
    """
    process = await asyncio.create_subprocess_exec(
        *_guarded(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
        limit=1 << 20,
    )
    try:
        yield process
    finally:
        await asyncio.shield(_end(process, grace_s))


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if process.returncode is None and os.name != "nt":
        process.terminate()
        with suppress(TimeoutError):
            # Read on: who cannot write does not end.
            await asyncio.wait_for(process.stdout.read(), grace_s)
    process.stdin.close()
    await ended(process)


async def ended(process: asyncio.subprocess.Process) -> int:
    """The exit status of `process` once it has ended, whether or not its pipes have.

    `Process.wait` also waits for the ends of its pipes in Python before 3.12.5 and 3.13 (python/cpython#119710): for
    ever when nobody reads what it left in them, and as long as a child of its own holds one.
    """
    while process.returncode is None:
        await asyncio.sleep(0.005)
    return process.returncode


def _guarded(argv: Sequence[str | Path]) -> list[str]:
    return [sys.executable, "-I", "-S", _GUARD, *map(str, argv)]


def pause(pid: int) -> None:
    """Let everything below the guard `pid` (see `running`) stand still until `resume`.

    Guards are left running: they must notice when their parents end.
    """
    import psutil

    paused: set[int] = set()
    while new := [p for p in _below(pid) if p.pid not in paused]:  # what was started meanwhile, too
        for process in new:
            paused.add(process.pid)
            with suppress(psutil.Error):
                if _GUARD not in process.cmdline():
                    process.suspend()


def resume(pid: int) -> None:
    """Let what `pause` held go on."""
    import psutil

    for process in _below(pid):
        with suppress(psutil.Error):
            process.resume()


def _below(pid: int) -> list[psutil.Process]:
    import psutil

    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.Error:
        return []
