"""Run another program for a fact, with a time limit that holds whatever the program does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MOST_BYTES = 1 << 20
_GRACE_S = 1.0


@dataclass(frozen=True)
class Output:
    """What a program wrote, and why it counts as failed (None: it ended with status 0)."""

    text: str
    failure: str | None


def run(argv: Sequence[str], timeout_s: float, environ: Mapping[str, str] | None = None) -> Output:
    """Run `argv` to its end, or kill it and its children after `timeout_s` seconds. Never raises, never hangs."""
    deadline = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environ is None else dict(environ),
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, ValueError) as error:
        return Output("", f"could not be started ({error})")
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [_Reader(process.stdout), _Reader(process.stderr)]
    for reader in readers:
        reader.join(max(0.0, deadline - time.monotonic()))
    status = None
    if not any(reader.is_alive() for reader in readers):
        with contextlib.suppress(subprocess.TimeoutExpired):
            # A reader that stopped at its limit leaves the program blocked on a full or closed pipe.
            status = process.wait(0 if any(r.full for r in readers) else max(0.0, deadline - time.monotonic()))
    if status is None:
        _kill(process, readers)
    text, complaint = (reader.text() for reader in readers)
    return Output(text, _failure(status, readers, text, complaint, timeout_s))


class _Reader(threading.Thread):
    """Collects one stream, up to a bound. Daemon: a program nobody can kill must not keep the host alive."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._chunks: list[bytes] = []
        self._size = 0
        self.full = False
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._stream:
            while chunk := os.read(self._stream.fileno(), 65536):
                self._chunks.append(chunk)
                self._size += len(chunk)
                if self._size > _MOST_BYTES:
                    self.full = True
                    return

    def text(self) -> str:
        return b"".join(list(self._chunks)).decode("utf-8", "replace")


def _kill(process: subprocess.Popen[bytes], readers: Sequence[_Reader]) -> None:
    """Kill the program's whole session. One stuck in the kernel (a wedged driver) is left behind, not waited for."""
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    for reader in readers:
        reader.join(_GRACE_S)


def _failure(status: int | None, readers: Sequence[_Reader], text: str, complaint: str, timeout_s: float) -> str | None:
    if any(reader.full for reader in readers):
        return f"wrote more than {_MOST_BYTES >> 20} MiB"
    if status is None:
        return f"gave no answer within {timeout_s:g} s"
    if status != 0:
        said = " ".join((complaint.strip() or text.strip()).split())[:200]
        return f"ended with status {status}" + (f": {said}" if said else "")
    return None
