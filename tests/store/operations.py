"""What survivor.py breaks off: operations of the store, with what has to be there before and after each."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import replace

import file_server
import store_world
import tiny_engine

from paceline import plugin_folder
from paceline.engine import Engine
from paceline.manager import plugin_packages
from paceline.manager.bundles import CONTENTS, read_bundle
from paceline.manager.cleanup import clean_up
from paceline.manager.installation import install, repair
from paceline.manager.plugin_trial import Trial
from paceline.manager.updates import Update as UpdateTo
from paceline.manager.updating import apply
from paceline.packages import equal_files
from paceline.packages.depot import Depot, PackageFile
from paceline.packages.download import download, partial_of
from paceline.packages.gathering import gather
from paceline.plugins import Plugins
from paceline.progress import silent
from paceline.store import health, transaction
from paceline.store.digests import Digests
from paceline.store.manifest import packages_of
from paceline.types import Package, Recipe, Release, Requirements, WorkerSpec

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
    return Release("engine", version, "linux-cpu", ("gguf", "nothing"), Requirements(), Recipe())


class Install:
    def wrong(self, store):
        """What is not as it must be afterwards, besides what `what_is_wrong` looks at."""
        return ()

    def prepare(self, store):
        store.select(store_world.add(store, "1.0"))

    def run(self, store):
        install(release("2.0"), store, Bare(), cache=store.home / "cache")

    def heal(self, store):
        self.run(store)

    def done(self, store):
        return store.find("engine-linux-cpu@2.0") is not None


class InstallPackages(Install):
    """Of an engine that is compiled, from a package index that every child asks."""

    def prepare(self, store):
        super().prepare(store)
        self.tiny = tiny_engine.TinyWorld(store.home.with_name("tiny"))
        release = self.tiny.release()
        engine = next(p for p in release.recipe.packages if p.source)
        self.release = replace(release, recipe=replace(release.recipe, packages=(engine,)))
        self.server = file_server.FileServer()
        for package in (engine, *release.recipe.build_packages):
            (file,) = self.tiny.index.glob(f"{package.name}-*")
            self.server.add_file(file.name, file.read_bytes())
            self.server.publish(package.name, {file.name: "2030-01-01"})
        os.environ |= {"UV_DEFAULT_INDEX": self.server.index, "UV_HTTP_RETRIES": "0"}
        for name in ("PIP_NO_INDEX", "UV_FIND_LINKS"):
            os.environ.pop(name, None)

    def run(self, store):
        install(self.release, store, self.tiny.engine, cache=store.home / "cache")

    def heal(self, store):
        """What was whole is asked for no more; where everything was, nothing is asked at all."""
        files = [path for path in self.server.files if path.startswith("/files/")]
        whole = {path for path in files if self._whole(store, path)}
        broken_off = list(store.home.glob("cache/packages/files/*/*.partial"))
        everything = len(whole) == len(files) and not broken_off
        self.server.asked.clear()
        self.run(store)
        self.asked_again = [path for path in self.server.asked if everything or path in whole]

    def _whole(self, store, path):
        name, content = path.rpartition("/")[2], self.server.files[path][0]
        depot = Depot(store.home / "cache")
        here = depot.path(PackageFile(name, hashlib.sha256(content).hexdigest()))
        page = depot.folder / "simple" / name.partition("-")[0] / "index.html"
        if any(file.exists() and file.read_bytes() == content for file in (here, partial_of(here))):
            return True
        return page.exists() and not partial_of(here).exists()  # uv has it, and its file was deleted

    def done(self, store):
        return store.selected("tiny") is not None and store.find("tiny-any-cpu@1.0.0") == store.selected("tiny")

    def wrong(self, store):
        return [f"asked again for {path}" for path in self.asked_again]


class ShareFiles(Install):
    """A runtime is published whose package has files in common with an installed one of another wheel."""

    def prepare(self, store):
        super().prepare(store)
        self._add(store, "2.0")
        self._unpack(store, "3.0")
        (store.home / "cache" / "uv" / ".lock").touch()

    def run(self, store):
        with store.installing():
            if not self.done(store):
                self._add(store, "3.0")

    def done(self, store):
        return store.find("engine-linux-cpu@3.0") is not None

    def wrong(self, store):
        for where in (self._archive(store, "3.0"), *packages_of(store.folder / "engine-linux-cpu@3.0" / "env")):
            there = {path.relative_to(where).as_posix(): path for path in where.rglob("*") if path.is_file()}
            if {name: path.read_text() for name, path in there.items()} != self._named("3.0"):
                yield f"in {where} are {list(there)}, or something else in them"

    def _add(self, store, version):
        """Install it as uv does, with links to what is unpacked in its cache."""
        staged, cache, digests = store.staging / f"made.{version}", store.home / "cache", Digests()
        packages = staged / "env" / "lib" / "python3" / "site-packages"
        archive = self._unpack(store, version)
        with transaction.explained("installing", store.home):
            transaction.make_folder(staged)
            for name in self._named(version):
                (packages / name).parent.mkdir(parents=True, exist_ok=True)
                (packages / name).hardlink_to(archive / name)
            others = [runtime.directory / "env" for runtime in store.runtimes()]
            equal_files.share(staged / "env", others, cache, digests)
            store.publish(staged, store_world.stage(staged, version))

    def _unpack(self, store, version):
        archive = self._archive(store, version)
        for name, text in self._named(version).items():
            if not (archive / name).exists():
                (archive / name).parent.mkdir(parents=True, exist_ok=True)
                (archive / name).write_text(text)
        return archive

    def _archive(self, store, version):
        return store.home / "cache" / "uv" / "archive-v0" / version

    def _named(self, version):
        wheel = f"package-{version}.dist-info/WHEEL"
        return {"package.py": "X = 1\n", "data/large": "x" * 10_000, wheel: "Wheel-Version: 1.0\n"}


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


class GiveBack(Rollback):
    """What did not load a model is given back for what did, and held."""

    def run(self, store):
        old, new = store.get("engine@1.0"), store.get("engine@2.0")
        store.give_back(new, old, "gguf", "did not load a model")

    def done(self, store):
        return super().done(store) and "engine-linux-cpu@2.0" in store.selection().holds


class StandIn(Rollback):
    """What loads a model serves it in the place of what is selected."""

    def run(self, store):
        old, new = store.get("engine@1.0"), store.get("engine@2.0")
        store.stand_in(old, new, "gguf", "model", "a new quantization")

    def done(self, store):
        return store.selected("gguf", "model").version == "1.0" and store.selected("gguf").version == "2.0"


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


class InPlace:
    """As where the system renames no folder that is installed, such as those that a container's image brought."""

    def run(self, store):
        told = transaction._observer or (lambda step, path: None)

        def refuse(step, path):
            told(step, path)
            store_world.refuse_to_move_folders(step, path)

        with transaction.observed(refuse):
            super().run(store)


class RemoveInPlace(InPlace, Remove):
    pass


class RepairInPlace(InPlace, Repair):
    pass


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
        with transaction.explained("fetching a file", store.home):  # as an installation says it
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
        with transaction.explained("taking packages", store.home):
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
        plugin_packages.try_plugins = lambda target, held, added=(): Trial({}, {}, 0.0)
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
    "install packages": InstallPackages(),
    "share files": ShareFiles(),
    "select": Select(),
    "rollback": Rollback(),
    "give back": GiveBack(),
    "stand in": StandIn(),
    "remove": Remove(),
    "repair": Repair(),
    "repair in two renames": RepairInTwoRenames(),
    "remove in place": RemoveInPlace(),
    "repair in place": RepairInPlace(),
    "prune": Prune(),
    "update": Update(),
    "install a plugin": InstallPlugin(),
    "remove a plugin": RemovePlugin(),
}
