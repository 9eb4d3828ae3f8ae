"""The lock of a change that takes a moment. What may wait long, or asks how long, takes filelock's."""

from __future__ import annotations

import errno
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
    takes longer than a change. Raises OSError where the file cannot be written.
    """
    handle = _flocked(file)
    if handle is None:
        from filelock import FileLock

        with FileLock(file):
            yield
        return
    import fcntl

    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # also for a child that is just starting and has the handle still
        os.close(handle)


def _flocked(file: Path) -> int | None:
    """A handle that holds the lock; None on a system or a file system that has no such locks, with no file left behind:
    there filelock takes any file for a lock that somebody holds."""
    if sys.platform == "win32":
        return None
    import fcntl

    handle, is_new = _opened(file)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except BaseException as error:
        os.close(handle)
        if not (isinstance(error, OSError) and error.errno == errno.ENOSYS):
            raise
        if is_new:
            file.unlink(missing_ok=True)
        return None
    return handle


def _opened(file: Path) -> tuple[int, bool]:
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        return os.open(file, flags | os.O_CREAT | os.O_EXCL, 0o666), True  # less the umask
    except FileExistsError:
        return os.open(file, flags | os.O_CREAT, 0o666), False
