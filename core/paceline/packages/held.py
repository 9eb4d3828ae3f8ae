"""A folder of the cache that one process at a time works in; the system takes its lock back from one that dies."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from paceline.progress import Phase
from paceline.store import transaction

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from paceline.progress import Progress

LOCK = "held.lock"
"""The lock's name in the folder."""


@contextmanager
def held(folder: Path, progress: Progress, waiting: str) -> Iterator[bool]:
    """Keep others out of `folder`, which is made where it is missing; yields whether one had to be waited for.

    `waiting`: what is told while another process holds it. What `progress` raises ends the waiting.
    """
    from filelock import FileLock, Timeout

    lock, waited = FileLock(transaction.make_folder(folder) / LOCK), False
    while True:
        try:
            lock.acquire(timeout=0.5 if waited else 0)
            break
        except Timeout:
            waited = True
            progress(Phase.WAIT, message=waiting)
    try:
        yield waited
    finally:
        lock.release()
