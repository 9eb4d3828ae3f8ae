"""A program between us and a command, which ends the command together with everything that it started.

It is run by its path (`python -I -S guard.py COMMAND …`, see `paceline.child`) and imports nothing of ours. It leads a
session of its own, so the terminal's Ctrl-C does not reach it, and reads a pipe whose other end only we hold: end of
file, also the one our SIGKILL causes, is the order to kill everything.

What a build starts does not stay together: ninja gives each compiler a process group of its own, and a compiler whose
ninja was killed has no parent left that tells where it came from. So on Linux the guard adopts what is orphaned below
it, and kills its children until it has none. Elsewhere it kills whatever is in its session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36


def main(argv: list[str]) -> None:
    """Run `argv` and exit as it does, with 128 + the signal's number when it was killed. SIGTERM is passed on."""
    command: subprocess.Popen[bytes] | None = None
    asked = False

    def end(*_: Any) -> None:
        nonlocal asked
        asked = True
        if command is not None:
            command.terminate()

    signal.signal(signal.SIGTERM, end)
    command = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    if asked:
        command.terminate()
    _adopt_orphans()
    ending = threading.Lock()
    threading.Thread(target=_kill_at_end_of_file, args=(command, ending), daemon=True).start()
    status = command.wait()
    with ending:
        if status < 0:
            _kill_everything(command)
        sys.stdout.flush()
        os._exit(status if status >= 0 else 128 - status)


def _kill_at_end_of_file(command: subprocess.Popen[bytes], ending: threading.Lock) -> None:
    sys.stdin.buffer.read()
    with ending:
        _kill_everything(command)
        os._exit(128 + 9)


def _kill_everything(command: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(command.pid)], capture_output=True)
        return
    below = _children if sys.platform == "linux" else _session
    seen: set[int] = set()
    while new := below() - seen:
        seen |= new
        killed = [pid for pid in new if _kill(pid)]
        for pid in killed:  # its children are ours, or gone from the session, only when it is
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _kill(pid: int) -> bool:
    with suppress(OSError):  # it is gone, or it is somebody else's, such as what `sudo` starts
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _adopt_orphans() -> None:
    """Linux: make this process the parent of every orphan below it, also of those that are there already."""
    if sys.platform == "linux":
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _children() -> set[int]:
    """The children of this process, from `/proc/PID/stat`: pid (name) state parent …"""
    own, found = str(os.getpid()), set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - pathlib takes as long as a guard to start
        with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            if file.read().rpartition(b")")[2].split()[1].decode() == own:
                found.add(int(pid))
    return found


def _session() -> set[int]:
    """What is in the session of this process, but for itself."""
    listed = subprocess.run(["ps", "-A", "-o", "pid="], stdout=subprocess.PIPE).stdout.split()
    found = set()
    for pid in map(int, listed):
        with suppress(OSError):
            if os.getsid(pid) == os.getsid(0):
                found.add(pid)
    return found - {os.getpid()}


if __name__ == "__main__":
    main(sys.argv[1:])
