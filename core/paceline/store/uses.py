"""Which processes use which runtime: one locked file for each use, `uses/<runtime id>/<pid>.<token>.lock`.

The system takes the lock back from a process that ends, however it ends, so a file that can be locked is a leftover.
Files are made and deleted under the store's lock alone (see `Store`), so that nobody deletes one before it is locked.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from paceline.store import transaction

if TYPE_CHECKING:
    from pathlib import Path

    from filelock import BaseFileLock

_WAIT_S = 5.0
"""For a lock that only one who asks whether it is held can hold, for an instant."""
_LAST = "last"
"""An empty file whose modification time says when the runtime was used last."""
_AFTER_S = 0.001
"""What is used later is stamped at least so much later, whatever the clock says."""


class Use:
    """A runtime held by this process until `release`."""

    def __init__(self, folder: Path | None, lock: BaseFileLock | None) -> None:
        self._folder = folder
        self._lock = lock

    def release(self) -> None:
        """Let go; a second call does nothing. Takes no lock and never fails."""
        lock, self._lock = self._lock, None
        if lock is not None and self._folder is not None:
            _touch(self._folder)
            lock.release()


NOTHING_HELD = Use(None, None)


def begin(folder: Path) -> Use:
    """Take a use in `folder`, the runtime's own. Raises OSError where it cannot be written. Under the store's lock."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{os.getpid()}.{os.urandom(4).hex()}.lock", thread_local=False)
    lock.acquire(timeout=_WAIT_S)
    _touch(folder)
    return Use(folder, lock)


def holders(folder: Path) -> tuple[int, ...]:
    """The ids of the processes that use the runtime. Reads only."""
    return tuple(sorted({_pid(file) for file in _files(folder) if _is_held(file)}))


def ended(folder: Path) -> tuple[Path, ...]:
    """What ended uses left. Reads only; one that is just beginning may be among them."""
    return tuple(file for file in _files(folder) if not _is_held(file))


def clean(folder: Path) -> None:
    """Delete what ended uses left. Under the store's lock."""
    for file in ended(folder):
        transaction.discard(file)


def last_used(folder: Path) -> float | None:
    """Seconds since the epoch; None when the runtime was never used."""
    try:
        return (folder / _LAST).stat().st_mtime
    except OSError:
        return None


def _files(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.suffix == ".lock"]
    except OSError:
        return []


def _is_held(file: Path) -> bool:
    """Asked with a shared lock where there are such, so that two who ask at once do not take each other for a use."""
    if sys.platform == "win32":
        from filelock import FileLock, Timeout

        try:
            with FileLock(file, timeout=0):
                return False
        except Timeout:
            return True
    import fcntl

    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _pid(file: Path) -> int:
    head = file.name.partition(".")[0]
    return int(head) if head.isdigit() else 0


def _touch(folder: Path) -> None:
    """Mark the runtime as the one that was used last, also when the clock was set back since another was."""
    with suppress(OSError):
        file = folder / _LAST
        stamps = [seconds for uses in folder.parent.iterdir() if (seconds := last_used(uses)) is not None]
        stamp = max([time.time(), *(seconds + _AFTER_S for seconds in stamps)])
        try:
            file.touch()
            os.utime(file, (stamp, stamp))
        except PermissionError:  # another user's, whose times he alone can set
            file.unlink()
            file.touch()
            os.utime(file, (stamp, stamp))
