"""A refresh of the one registry that a home trusts, ended by SIGKILL at each of its file-system steps.

    python breaker.py refresh HOME WORK

Every step is a fresh copy of HOME in which a process of its own refreshes until it opens a file to write, renames,
links or deletes for the n-th time. Afterwards what was verified before is whole, or what is new; and another refresh
brings what is new. Prints one JSON object: how many steps there are, and what was wrong, which must be nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from paceline.registry import signed, trust

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_STEPS = {"os.rename", "os.remove", "os.symlink", "os.link", "os.mkdir", "os.rmdir"}


def main() -> None:
    _, _, home, work = sys.argv
    base, work = Path(home), Path(work)
    first = known(only(base))
    done = work / "done"
    shutil.copytree(base, done, symlinks=True)
    assert signed.refresh(only(done)).ok
    news = known(only(done))
    steps, wrong = 0, []
    while True:
        folder = work / str(steps)
        shutil.copytree(base, folder, symlinks=True)
        if not killed(folder, steps + 1):
            break
        steps += 1
        left = known(only(folder))
        if left not in (first, news):
            wrong.append(f"after step {steps}: {left}")
        again = signed.refresh(only(folder))
        if not again.ok or known(only(folder)) != news:
            wrong.append(f"after step {steps}, again: {again}")
        if litter := [p.name for p in only(folder).folder.rglob("*") if p.name.startswith(("tmp", "."))]:
            wrong.append(f"after step {steps}, left: {litter}")
        shutil.rmtree(folder)
    print(json.dumps({"steps": steps, "wrong": wrong}))


def only(home: Path) -> trust.TrustedRegistry:
    (registry,) = trust.trusted(home)
    return registry


def known(registry: trust.TrustedRegistry) -> list[str] | None:
    found = trust.verified(registry)
    return None if found is None else [release.id for release in found.releases]


def killed(home: Path, at: int) -> bool:
    """Refresh in a process that ends at its step `at`; False when it has fewer steps."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
        return os.WIFSIGNALED(status)
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        path = arguments[0] if arguments else None
        if (writes or event in _STEPS) and isinstance(path, (str, os.PathLike)) and str(home) in os.fspath(path):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    ok = signed.refresh(only(home)).ok
    os._exit(0 if ok else 1)


if __name__ == "__main__":
    main()
