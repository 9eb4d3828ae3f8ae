"""Operations of the store, each broken off at each of its file-system steps in a process of its own.

    python survivor.py FOLDER MODE OPERATION

Modes: `kill` (SIGKILL at the step), `each error` (ENOSPC, EIO and EACCES one after the other), `errors in turn` (the
first at the first step, the second at the second, and so on), `full` (at the step the file system of FOLDER, a small
one, is filled to the last byte). Prints one JSON object: how many steps the operation has, how many times it was broken
off, how it ended how often, and what was wrong afterwards, which must be nothing.
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

from paceline import plugin_folder
from paceline.engine import Engine
from paceline.errors import PacelineError
from paceline.manager import plugin_packages
from paceline.manager.bundles import CONTENTS, read_bundle
from paceline.manager.cleanup import clean_up
from paceline.manager.installation import install, repair
from paceline.manager.plugin_trial import Trial
from paceline.manager.updates import Update as UpdateTo
from paceline.manager.updating import apply
from paceline.packages.depot import Depot
from paceline.packages.download import download
from paceline.packages.gathering import gather
from paceline.plugins import Plugins
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
    def wrong(self, store):
        """What is not as it must be afterwards, besides what `what_is_wrong` looks at."""
        return ()

    def prepare(self, store):
        store.select(store_world.add(store, "1.0"))

    def run(self, store):
        install(release("2.0"), store, Bare(), cache=store.home / "cache")

    def done(self, store):
        return store.find("engine-linux-cpu@2.0") is not None


class Update(Install):
    """The whole of it: what is new is installed beside what is selected, and selected in its place."""

    def run(self, store):
        old = store.get("engine@1.0")
        apply(UpdateTo(old, ("gguf",), release("2.0")), store, Plugins((), {"engine": Bare()}))

    def done(self, store):
        return store.selected("gguf").version == "2.0"


class Select(Install):
    def prepare(self, store):
        store.select(store_world.add(store, "1.0"))
        store_world.add(store, "2.0")

    def run(self, store):
        store.select(store.get("engine@2.0"))

    def done(self, store):
        return store.selected("gguf").version == "2.0"


class Rollback(Install):
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


class InstallPlugin(Install):
    """Beside another one. What uv does is done by a few lines here, which take no second; its files are real."""

    def prepare(self, store):
        super().prepare(store)
        plugin_packages.overlay._uv = play_uv
        plugin_packages.overlay.host_packages = lambda without: {}
        plugin_packages.try_plugins = lambda target, held: Trial({}, {}, 0.0)
        self.wheels = {name: self._wheel(store.home / "wheels", name) for name in ("owl", "parrot")}
        self._install(store, "owl")

    def run(self, store):
        if not self.done(store):
            self._install(store, "parrot")

    def done(self, store):
        return self._held(store) == {"owl", "parrot"}

    def wrong(self, store):
        held = self._held(store)
        if "owl" not in held:
            yield "a plugin is gone"
        folder = plugin_folder.packages(
            plugin_folder.generation(store.home, plugin_folder.read_state(store.home).generation)
        )
        for name in held:
            if (folder / f"{name}.py").read_text() != f"NAME = {name!r}\n":
                yield f"the plugin {name} is not whole"
        folder = store.home / "plugins"
        yield from (f"{left.name} is left" for left in folder.glob("staging.*"))

    def _install(self, store, name):
        wanted = [str(self.wheels[name])]
        plugin_packages.install(wanted, store, cache=store.home / "cache", confirm=lambda change: True)

    def _held(self, store):
        return {package.name for package in plugin_folder.read_state(store.home).packages}

    def _wheel(self, folder, name):
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}-1.0-py3-none-any.whl"
        entry = {f"{name}-1.0.dist-info/entry_points.txt": f"[paceline]\n{name} = {name}\n"}
        tiny_engine.write_wheel(path, name, {f"{name}.py": f"NAME = {name!r}\n"} | entry, "1.0")
        return path


class RemovePlugin(InstallPlugin):
    def prepare(self, store):
        super().prepare(store)
        self._install(store, "parrot")

    def run(self, store):
        if not self.done(store):
            plugin_packages.remove(["parrot"], store, confirm=lambda change: True)

    def done(self, store):
        return self._held(store) == {"owl"}


def play_uv(arguments, folder, environment):
    if "compile" in arguments:
        wheels = sorted((folder / "wheels").iterdir())
        (folder / "pylock.toml").write_text("".join(map(_locked, wheels)))
    else:
        for wheel in (folder / "wheels").iterdir():
            zipfile.ZipFile(wheel).extractall(arguments[arguments.index("--target") + 1])


def _locked(wheel):
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    archive = f'archive = {{ path = "{wheel}", hashes = {{ sha256 = "{sha256}" }} }}'
    return f'[[packages]]\nname = "{wheel.name.partition("-")[0]}"\nversion = "1.0"\n{archive}\n'


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
    "update": Update(),
    "install a plugin": InstallPlugin(),
    "remove a plugin": RemovePlugin(),
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


def survive(folder, mode, name):
    operation, template, home = OPERATIONS[name], folder / "template", folder / "home"
    operation.prepare(Store(template))
    broken_before = {r.id for r in Store(template).runtimes() if not health.full(r.directory).ok}
    incomplete_before = set(Store(template).incomplete())
    problems, statuses, runs = [], {}, 0
    while True:
        shutil.copytree(template, home, symlinks=True)
        reached = []
        store = Store(home)
        step, happen, reason = what_happens(folder, mode, runs)
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
        operation.run(store)
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
    print(json.dumps(survive(where, sys.argv[2], sys.argv[3])), flush=True)
    os._exit(0)  # whatever server still runs
