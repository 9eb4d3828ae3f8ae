"""Whether a model's file is mapped or read, where the load leaves that open.

A token of a model whose weights are used as they lie in the file takes up to 7 % less time when they were read into
memory in huge pages (docs/decisions/huge-pages.md). Such memory cannot be dropped as a mapped file can, which stays in
the page cache beside it for a while, so a file is read only where memory is plentiful.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_PLENTY = 3
"""How many times the file's size must be free."""
_PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")


def is_worth_reading(path: Path, gpus: Sequence[str], root: Path = Path("/")) -> bool:
    """Whether to read a model's file rather than map it: on Linux with huge pages for who asks, without a GPU.

    `root`: where `sys` and `proc` are mounted. Anything that cannot be found out means no.
    """
    if gpus:
        return False
    try:
        choice = (root / "sys/kernel/mm/transparent_hugepage/enabled").read_text()
        return "[never]" not in choice and _free(root) >= _PLENTY * _size(path)
    except (OSError, ValueError):
        return False


def _size(path: Path) -> int:
    """Bytes of all parts of a model, which are of about one size."""
    part = _PART.search(path.name)
    return path.stat().st_size * (int(part[1]) if part else 1)


def _free(root: Path) -> int:
    """Bytes that can be allocated before anything else must go."""
    found = re.search(r"^MemAvailable: +(\d+) kB$", (root / "proc/meminfo").read_text(), re.MULTILINE)
    free = int(found[1]) * 1024 if found else 0
    group = root / "sys/fs/cgroup"
    try:
        most, used = (group / "memory.max").read_text().strip(), (group / "memory.current").read_text()
    except OSError:
        return free  # no bound of its own, or another kind of group, whose bound the load's estimate knows
    return free if most == "max" else min(free, int(most) - int(used))
