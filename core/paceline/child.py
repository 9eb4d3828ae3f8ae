"""Run a command that ends when this process does, however it ends, with everything the command started."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

# A guard between us and the command. It leads a session of its own, so the terminal's Ctrl-C does not reach it, and
# reads a pipe whose other end only we hold: end of file, also the one our SIGKILL causes, kills the whole session.
_GUARD = """
import os, signal, subprocess, sys, threading

def watch(child):
    sys.stdin.buffer.read()
    if os.name == "nt":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(child.pid)], capture_output=True)
        os._exit(1)
    os.killpg(0, signal.SIGKILL)

child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=watch, args=(child,), daemon=True).start()
status = child.wait()
sys.stdout.flush()
os._exit(status if status >= 0 else 128 - status)
"""


def run(
    argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, on_line: Callable[[str], None] | None = None
) -> int:
    """Run `argv` to its end and return its exit status (128 + the signal's number for one that was killed).

    Every line of its output and error stream is given to `on_line`. When that raises, or on Ctrl-C, the command is
    killed with all its children before the exception goes on.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, *map(str, argv)],
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
