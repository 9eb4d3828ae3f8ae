"""Memory this process may use, in bytes."""

from __future__ import annotations

from pathlib import Path

from paceline.survey.cgroup import memory_limit
from paceline.survey.facts import Fact


def memory_total(root: Path = Path("/")) -> Fact[int]:
    """All of it: the machine's, or less where a control group says so."""
    import psutil

    total = psutil.virtual_memory().total
    limit = memory_limit(root)
    if limit is not None and limit.limit < total:
        return Fact(limit.limit, limit.source)
    return Fact(total, "psutil")


def memory_available(root: Path = Path("/")) -> Fact[int]:
    """What could be allocated now without swapping."""
    import psutil

    available = psutil.virtual_memory().available
    limit = memory_limit(root)
    if limit is not None and limit.available < available:
        return Fact(limit.available, limit.source)
    return Fact(available, "psutil")
