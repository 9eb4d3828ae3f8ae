"""Operations of the store, each broken off at each of its file-system steps in a process of its own.

    python survivor.py FOLDER MODE OPERATION

Modes: `kill` (SIGKILL at the step), `each error` (ENOSPC, EIO and EACCES one after the other), `errors in turn` (the
first at the first step, the second at the second, and so on), `full` (at the step the file system of FOLDER, a small
one, is filled to the last byte). Prints one JSON object: how many steps the operation has, how many times it was broken
off, how it ended how often, and what was wrong afterwards, which must be nothing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from operations import OPERATIONS

from paceline.errors import PacelineError
from paceline.store import Store, health, transaction

REFUSED, CRASHED = 10, 11


class At:
    """An observer that lets `happen` happen at one step."""

    def __init__(self, number, happen):
        self._left = number
        self._happen = happen

    def __call__(self, step, path):
        if self._left <= 0:
            self._happen(step, path)
        self._left -= 1


def kill(step, path):
    os.kill(os.getpid(), signal.SIGKILL)


class Fault:
    """An error of the system: ENOSPC is met from then on by all but deletions, EACCES by everything, EIO once."""

    def __init__(self, name):
        self.code = getattr(errno, name)
        self._once, self._spares = name == "EIO", "delete" if name == "ENOSPC" else None
        self._met = False

    def __call__(self, step, path):
        if step != self._spares and not (self._once and self._met):
            self._met = True
            raise OSError(self.code, os.strerror(self.code), str(path))


KINDS = ("ENOSPC", "EIO", "EACCES")


def fill(folder):
    def happen(step, path):
        with suppress(OSError), (folder / "filler").open("ab", buffering=0) as file:
            for size in (65536, 1024, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    return happen


def broken_off(operation, store, happen, number, reason=""):
    """Run `operation` in a child whose step of that number is broken off; returns the child's wait status.

    An error counts as a refusal when it says `reason` and what to do.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = CRASHED
    try:
        with transaction.observed(At(number, happen)):
            operation.run(store)
        status = 0
    except PacelineError as error:
        status = REFUSED if reason in error.message and (error.help or not reason) else CRASHED
        if status == CRASHED:
            print(f"{error.message!r}, help: {error.help!r}", file=sys.stderr)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def what_is_wrong(store, broken_before):
    """What is not as it must be at any moment."""
    selected = store.selected("gguf")
    if selected is None:
        yield "nothing is selected"
    elif selected.id not in broken_before and not health.full(selected.directory).ok:
        yield f"the selected {selected.id} is not whole"
    for runtime in store.runtimes():
        found = health.full(runtime.directory)
        if not found.ok and runtime.id not in broken_before:
            yield f"{runtime.id} counts as installed and is not whole: {found.problems}"


def what_happens(folder, mode, run):
    """In that run: at which step an operation is broken off, by what, and what an error that tells of it has to say."""
    if mode in ("kill", "full"):
        return run, kill if mode == "kill" else fill(folder), ""
    step, kind = divmod(run, len(KINDS)) if mode == "each error" else (run, run % len(KINDS))
    fault = Fault(KINDS[kind])
    return step, fault, os.strerror(fault.code)


def survive(folder, mode, name, stride):
    operation, template, home = OPERATIONS[name], folder / "template", folder / "home"
    operation.prepare(Store(template))
    broken_before = {r.id for r in Store(template).runtimes() if not health.full(r.directory).ok}
    incomplete_before = set(Store(template).incomplete())
    problems, statuses, runs = [], {}, 0
    while True:
        shutil.copytree(template, home, symlinks=True)
        reached = []
        store = Store(home)
        step, happen, reason = what_happens(folder, mode, runs * stride)
        if mode == "kill":
            status = broken_off(operation, store, happen, step)
            finished = status == 0
        else:
            read, write = os.pipe()

            def told(name, path, write=write, happen=happen):
                os.write(write, b"x")
                happen(name, path)

            status = broken_off(operation, store, told, step, reason)
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                reached = pipe.read()
            finished = not reached
        (folder / "filler").unlink(missing_ok=True)
        statuses[status] = statuses.get(status, 0) + 1
        problems += [f"step {step}: {p}" for p in what_is_wrong(store, broken_before)]
        if status == 0 and not operation.done(store):
            problems.append(f"step {step}: said to be done, and was not")
        if set(store.incomplete()) - incomplete_before:
            problems.append(f"step {step}: incomplete {store.incomplete()}")
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == CRASHED:
            problems.append(f"step {step}: an error that is none of Paceline's")
        # The next operation heals, without a network.
        operation.heal(store)
        with store.installing():
            pass
        if not operation.done(store):
            problems.append(f"step {step}: could not be done again")
        problems += [f"step {step}, healed: {p}" for p in operation.wrong(store)]
        if left := [p.name for p in (*store.staging.glob("*"), *home.glob(".selection*"), *home.glob(".plugins*"))]:
            problems.append(f"step {step}: left {left}")
        problems += [f"step {step}, healed: {p}" for p in what_is_wrong(store, set())]
        shutil.rmtree(home)
        if finished:
            break
        runs += 1
    return {"steps": step, "broken_off": runs, "problems": problems, "statuses": statuses}


# The interpreters are links to this very one: every hash is compared, and no process started to see that it starts.
health._starts = lambda python, manifest: []

if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    print(json.dumps(survive(where, *sys.argv[2:4], int(sys.argv[4]))), flush=True)
    os._exit(0)  # whatever server still runs
