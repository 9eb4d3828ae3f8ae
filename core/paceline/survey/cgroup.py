"""The memory limit of this process's control group, versions 1 and 2 (Linux, containers).

Formats: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_NO_LIMIT = 1 << 60  # version 1 writes "unlimited" as the largest multiple of a page


@dataclass(frozen=True)
class MemoryLimit:
    """What the tightest control group leaves to this process, in bytes."""

    limit: int
    available: int
    source: str


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """The tightest limit on the way from this process's own group to the top, or None where nothing limits it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits: list[MemoryLimit] = []
    for line in lines:
        # hierarchy:controllers:path; version 2 has no controllers.
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                limits += _limits(root / mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            limits += _limits(root / "sys/fs/cgroup/memory", path, *names)
    if not limits:
        return None
    tightest = min(limits, key=lambda found: found.limit)
    return MemoryLimit(tightest.limit, min(found.available for found in limits), tightest.source)


def _limits(mount: Path, path: str, limit_file: str, usage_file: str, reclaimable: str) -> list[MemoryLimit]:
    found = []
    own = PurePosixPath("/") / path
    # In a container the path may be the host's: what does not exist below the mount is skipped.
    for group in (own, *own.parents):
        folder = mount.joinpath(*group.parts[1:])
        limit = _number(folder / limit_file)
        if limit is None or limit >= _NO_LIMIT:
            continue
        used = _number(folder / usage_file) or 0
        cached = _statistic(folder / "memory.stat", reclaimable) or 0
        found.append(MemoryLimit(limit, max(0, limit - max(0, used - cached)), str(folder / limit_file)))
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int | None:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == name), None)
    except (OSError, ValueError):
        return None
