"""The lock of a change that takes a moment. What may wait long, or asks how long, takes filelock's."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of `file`, which is made where it is missing, and wait as long as another thread or process does.

    The system takes it back from a process that ends. It is the lock that `filelock.FileLock` takes, whose import alone
    takes longer than a change. Raises OSError where the file cannot be written, or its file system has no locks.
    """
    if sys.platform == "win32":
        from filelock import FileLock

        with FileLock(file):
            yield
        return
    import fcntl

    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # less the umask
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # also for a child that is just starting and has the handle still
    finally:
        os.close(handle)
