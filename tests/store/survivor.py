"""Operations of the store, each broken off at each of its file-system steps in a process of its own.

    python survivor.py FOLDER MODE OPERATION

Modes: `kill` (SIGKILL at the step), `fault` (from the step on, what writes fails with ENOSPC), `full` (at the step the
file system of FOLDER, a small one, is filled to the last byte). Prints one JSON object: how many steps the operation
has, and what was wrong afterwards, which must be nothing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import file_server
import store_world
import tiny_engine

from paceline.engine import Engine
from paceline.errors import PacelineError
from paceline.manager.bundles import CONTENTS, read_bundle
from paceline.manager.cleanup import clean_up
from paceline.manager.installation import install, repair
from paceline.packages.depot import Depot
from paceline.packages.download import download
from paceline.packages.gathering import gather
from paceline.progress import silent
from paceline.store import Store, health, transaction
from paceline.types import Package, Recipe, Release, Requirements, WorkerSpec

REFUSED, CRASHED = 10, 11
_WORKER = """
import json, sys
for line in sys.stdin:
    result = {"protocol": 1, "engine": "engine", "version": "1", "features": [], "slots": 1, "devices": []}
    print(json.dumps({"jsonrpc": "2.0", "id": json.loads(line)["id"], "result": result}), flush=True)
"""


class Bare(Engine):
    """An engine without packages: its worker is a few lines that the runtime's own interpreter runs."""

    name = "engine"
    formats = ("gguf",)

    def worker(self, runtime):
        return WorkerSpec((str(runtime.python), "-I", "-S", "-B", "-c", _WORKER))


def release(version):
    return Release("engine", version, "linux-cpu", ("nothing",), Requirements(), Recipe())


class Install:
    def prepare(self, store):
        store.select(store_world.add(store, "1.0"))

    def run(self, store):
        install(release("2.0"), store, Bare(), cache=store.home / "cache")

    def done(self, store):
        return store.find("engine-linux-cpu@2.0") is not None


class Select:
    def prepare(self, store):
        store.select(store_world.add(store, "1.0"))
        store_world.add(store, "2.0")

    def run(self, store):
        store.select(store.get("engine@2.0"))

    def done(self, store):
        return store.selected("gguf").version == "2.0"


class Rollback:
    def prepare(self, store):
        old, new = store_world.add(store, "1.0"), store_world.add(store, "2.0")
        store.select(old)
        store.note_loaded(old, "gguf")
        store.select(new)

    def run(self, store):
        if not self.done(store):
            store.rollback("gguf")

    def done(self, store):
        return store.selected("gguf").version == "1.0"


class Remove(Select):
    def prepare(self, store):
        store_world.add(store, "1.0")
        Select.prepare(self, store)
        store.note_loaded(store.get("engine@2.0"), "gguf")

    def run(self, store):
        if not self.done(store):
            store.remove(store.get("engine@2.0"))

    def done(self, store):
        return [r.version for r in store.runtimes()] == ["1.0"]


class Repair(Select):
    def prepare(self, store):
        super().prepare(store)
        (store.folder / "engine-linux-cpu@2.0" / "env" / "engine.so").unlink()

    def run(self, store):
        repair("engine-linux-cpu@2.0", store, Bare(), cache=store.home / "cache")

    def done(self, store):
        return health.full(store.folder / "engine-linux-cpu@2.0").ok


class RepairInTwoRenames(Repair):
    """As on a system that cannot exchange two folders."""

    def run(self, store):
        transaction._exchange = lambda a, b: False
        super().run(store)


class Prune(Select):
    def prepare(self, store):
        Select.prepare(self, store)
        store_world.add(store, "3.0")
        (store.staging / "engine-linux-cpu@4.0.77" / "env").mkdir(parents=True)
        (store.folder / "engine-linux-cpu@5.0").mkdir()

    def run(self, store):
        clean_up(store, 0)

    def done(self, store):
        return [r.version for r in store.runtimes()] == ["1.0"] and store.incomplete() == ()


class Download(Install):
    """Of a file that this process serves, which every child asks for."""

    content = bytes(range(256)) * 1000

    def prepare(self, store):
        super().prepare(store)
        self.server = file_server.FileServer()
        self.server.files["/file"] = self.content, "application/octet-stream"

    def run(self, store):
        sha256 = hashlib.sha256(self.content).hexdigest()
        download(f"{self.server.url}/file", store.home / "fetched" / "file", sha256=sha256)

    def done(self, store):
        return (store.home / "fetched" / "file").read_bytes() == self.content


class TakeFromABundle(Install):
    """A wheel, out of a bundle and into the folder that uv installs from."""

    def prepare(self, store):
        super().prepare(store)
        wheel = store.home / "a-1.0-py3-none-any.whl"
        tiny_engine.write_wheel(wheel, "a", {"a.py": "X = 1\n"}, "1.0")
        self.wheel = wheel.read_bytes()
        self.sha256 = hashlib.sha256(self.wheel).hexdigest()
        file = {"name": wheel.name, "sha256": self.sha256, "size": len(self.wheel)}
        contents = {"format": 1, "pythons": [], "registry": {"schema_version": 1, "releases": []}, "files": [file]}
        with zipfile.ZipFile(store.home / "bundle", "w") as archive:
            archive.writestr(CONTENTS, json.dumps(contents))
            archive.writestr(f"files/{self.sha256}/{wheel.name}", self.wheel)

    def run(self, store):
        bundle = read_bundle(store.home / "bundle")
        gather([Package("a", "1.0", (self.sha256,))], Depot(store.home / "cache"), bundle, silent)

    def done(self, store):
        depot = Depot(store.home / "cache")
        return depot.index and depot.path(read_bundle(store.home / "bundle").listed[0]).read_bytes() == self.wheel


OPERATIONS = {
    "download": Download(),
    "take from a bundle": TakeFromABundle(),
    "install": Install(),
    "select": Select(),
    "rollback": Rollback(),
    "remove": Remove(),
    "repair": Repair(),
    "repair in two renames": RepairInTwoRenames(),
    "prune": Prune(),
}


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


def fault(step, path):
    if step != "delete":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def fill(folder):
    def happen(step, path):
        with suppress(OSError), (folder / "filler").open("ab", buffering=0) as file:
            for size in (65536, 1024, 1):
                with suppress(OSError):
                    while True:
                        file.write(b"x" * size)

    return happen


def broken_off(operation, store, happen, number):
    """Run `operation` in a child whose step of that number is broken off; returns the child's wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = CRASHED
    try:
        with transaction.observed(At(number, happen)):
            operation.run(store)
        status = 0
    except PacelineError as error:
        status = REFUSED if error.message else CRASHED
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


def survive(folder, mode, name):
    operation, template, home = OPERATIONS[name], folder / "template", folder / "home"
    operation.prepare(Store(template))
    broken_before = {r.id for r in Store(template).runtimes() if not health.full(r.directory).ok}
    incomplete_before = set(Store(template).incomplete())
    happen = {"kill": kill, "fault": fault, "full": fill(folder)}[mode]
    problems, statuses, steps = [], {}, 0
    while True:
        shutil.copytree(template, home, symlinks=True)
        reached = []
        store = Store(home)
        if mode == "kill":
            status = broken_off(operation, store, happen, steps)
            finished = status == 0
        else:
            read, write = os.pipe()

            def told(step, path, write=write):
                os.write(write, b"x")
                happen(step, path)

            status = broken_off(operation, store, told, steps)
            os.close(write)
            with os.fdopen(read, "rb") as pipe:
                reached = pipe.read()
            finished = not reached
        (folder / "filler").unlink(missing_ok=True)
        statuses[status] = statuses.get(status, 0) + 1
        problems += [f"step {steps}: {p}" for p in what_is_wrong(store, broken_before)]
        if set(store.incomplete()) - incomplete_before:
            problems.append(f"step {steps}: incomplete {store.incomplete()}")
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == CRASHED:
            problems.append(f"step {steps}: an error that is none of Paceline's")
        # The next operation heals, without a network.
        operation.run(store)
        with store.installing():
            pass
        if not operation.done(store):
            problems.append(f"step {steps}: could not be done again")
        if left := [p.name for p in (*store.staging.glob("*"), *home.glob(".selection*"))]:
            problems.append(f"step {steps}: left {left}")
        problems += [f"step {steps}, healed: {p}" for p in what_is_wrong(store, set())]
        shutil.rmtree(home)
        if finished:
            break
        steps += 1
    return {"steps": steps, "problems": problems, "statuses": statuses}


# The interpreters are links to this very one: every hash is compared, and no process started to see that it starts.
health._starts = lambda python, manifest: []

if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    print(json.dumps(survive(where, sys.argv[2], sys.argv[3])), flush=True)
    os._exit(0)  # whatever server still runs
