"""An engine of a few lines, shipped like any third-party plugin: a module, its metadata, and packages to install.

The packages are a source distribution with a build backend of its own, a wheel it depends on, and a build requirement.
What the build and the worker do wrong is asked for by the release's config settings.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import inspect
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from paceline.registry import registry_text
from paceline.types import Package, Recipe, Release, Requirements

ENGINE, DEPENDENCY, BUILDER = "tinyengine", "tinydep", "tinybuild"
VERSION = "1.0.0"


class TinyWorld:
    """A folder with the packages, the plugin, a home and a cache."""

    @property
    def worker(self) -> str:
        """The source of the engine's worker."""
        return _WORKER

    write_wheel = staticmethod(lambda *arguments: write_wheel(*arguments))

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.cache = folder / "cache"
        self.index = folder / "index"
        self._plugin = folder / "plugin"
        self._write_packages()
        self._write_plugin()
        self.offer(self.release())
        self.engine = _load(self._plugin / "tiny_plugin.py").Tiny()

    def environment(self) -> dict[str, str]:
        """For a process that sees this plugin alone, this home and cache, and no package index but this folder."""
        return {
            "PACELINE_HOME": str(self.home),
            "PACELINE_CACHE": str(self.cache),
            "PACELINE_PLUGINS": "tiny",
            "PYTHONPATH": str(self._plugin),
            "UV_FIND_LINKS": str(self.index),
            "PIP_NO_INDEX": "1",
        }

    def release(self, version: str = VERSION, **settings: str) -> Release:
        """A release whose build and worker behave as `settings` say: fail=yes, linger=yes, crash=yes, native=yes."""
        engine = Package(ENGINE, VERSION, (self.hash(f"{ENGINE}-{VERSION}.tar.gz"),), source=True)
        dependency = Package(DEPENDENCY, VERSION, (self.hash(f"{DEPENDENCY}-{VERSION}-py3-none-any.whl"),))
        builder = Package(BUILDER, VERSION, (self.hash(f"{BUILDER}-{VERSION}-py3-none-any.whl"),))
        recipe = Recipe((dependency, engine), (builder,), {ENGINE: settings} if settings else {}, ("lib",), 1.0)
        return Release("tiny", version, "any-cpu", ("tiny",), Requirements(), recipe, features=("generate",))

    def offer(self, *releases: Release) -> None:
        """Make these the releases that the plugin brings."""
        (self._plugin / "releases.json").write_text(registry_text(releases))

    def hash(self, file: str) -> str:
        return hashlib.sha256((self.index / file).read_bytes()).hexdigest()

    def simple_index(self) -> str:
        """The address of an index page that lists a wheel of the engine, without hashes."""
        page = self.folder / "simple" / ENGINE / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        name = f"{ENGINE}-{VERSION}-py3-none-any.whl"
        write_wheel(page.with_name(name), ENGINE, {f"{ENGINE}/__main__.py": _WORKER, f"{ENGINE}/settings.json": "{}"})
        page.write_text(f'<a href="{name}">{name}</a>')
        return page.parents[1].as_uri()

    def web_index(self) -> Path:
        """A folder that, served over HTTP, is a package index with the tiny packages and their hashes."""
        root = self.folder / "web"
        for file in self.index.iterdir():
            page = root / file.name.partition("-")[0] / "index.html"
            page.parent.mkdir(parents=True)
            page.with_name(file.name).write_bytes(file.read_bytes())
            page.write_text(f'<a href="{file.name}#sha256={self.hash(file.name)}">{file.name}</a>')
        return root

    def paceline(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the `paceline` command."""
        return self.python("-m", "paceline", *arguments, **variables)

    def python(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **self.environment(), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def at_a_terminal(self, typed: str, *arguments: str, **variables: str) -> tuple[int, str]:
        """The status of a command and everything shown when it runs at a terminal where somebody types."""
        pty = pytest.importorskip("pty")
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "paceline", *arguments],
            env={**os.environ, **self.environment(), **variables},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        os.write(ours, typed.encode())
        shown = b""
        with suppress(OSError):  # Linux says so when the other side is closed
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        return process.wait(timeout=120), shown.decode()

    def _write_packages(self) -> None:
        self.index.mkdir(parents=True)
        write_wheel(
            self.index / f"{DEPENDENCY}-{VERSION}-py3-none-any.whl", DEPENDENCY, {f"{DEPENDENCY}.py": "NAME = 1\n"}
        )
        write_wheel(self.index / f"{BUILDER}-{VERSION}-py3-none-any.whl", BUILDER, {f"{BUILDER}.py": "NAME = 2\n"})
        files = {
            "pyproject.toml": f'[build-system]\nrequires = ["{BUILDER}"]\n'
            'build-backend = "backend"\nbackend-path = ["."]\n'
            f'[project]\nname = "{ENGINE}"\nversion = "{VERSION}"\n',
            "PKG-INFO": f"Metadata-Version: 2.2\nName: {ENGINE}\nVersion: {VERSION}\n",
            "backend.py": _BACKEND,
            "worker.py": _WORKER,
            "wheels.py": _WHEELS + inspect.getsource(write_wheel),
        }
        with tarfile.open(self.index / f"{ENGINE}-{VERSION}.tar.gz", "w:gz") as archive:
            for name, text in files.items():
                data = text.encode()
                entry = tarfile.TarInfo(f"{ENGINE}-{VERSION}/{name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    def _write_plugin(self) -> None:
        metadata = self._plugin / "tiny_plugin-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugin\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text("[paceline]\ntiny = tiny_plugin\n")
        (self._plugin / "tiny_plugin.py").write_text(_PLUGIN)


def write_wheel(
    path: Path,
    name: str,
    files: dict[str, str],
    version: str = "1.0.0",
    pure: str = "true",
    requires: tuple[str, ...] = (),
) -> None:
    """Write a pure Python wheel, the same bytes each time. The tiny engine's build backend uses this very function."""
    info = f"{name}-{version}.dist-info"
    tag = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\nTag: py3-none-any\n"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": tag,
    }
    record = ""
    for file, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{file},sha256={digest},{len(text.encode())}\n"
    record += f"{info}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(zipfile.ZipInfo(file), text)


def _load(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("tiny_plugin_under_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_PLUGIN = """
from pathlib import Path
from paceline import Engine, Upstream, WorkerSpec, hookimpl
from paceline.registry import read_registry

PACELINE_API = 1

class Tiny(Engine):
    name = "tiny"
    formats = ("tiny",)
    upstream = Upstream("tinyengine", ">=1,<2")

    def releases(self):
        return read_registry(Path(__file__).with_name("releases.json"))

    def worker(self, runtime):
        return WorkerSpec(argv=(str(runtime.python), "-I", "-B", "-m", "tinyengine"))

@hookimpl
def paceline_engines():
    return [Tiny()]
"""

_WHEELS = "import base64\nimport hashlib\nimport zipfile\nfrom pathlib import Path\n\n"

_BACKEND = """
import subprocess, sys
import tinybuild
import wheels

def build_wheel(folder, config_settings=None, metadata_directory=None):
    settings = config_settings or {}
    compiler = "import time; time.sleep(600)" if settings.get("linger") else "pass"
    step = subprocess.Popen([sys.executable, "-c", compiler], process_group=0)  # as ninja starts its steps
    print("[1/3] cc first.c", flush=True)
    step.wait()
    print("[2/3] cc second.c", flush=True)
    if settings.get("fail"):
        sys.exit("second.c:7: error: the sky is not blue")
    print("[3/3] ld", flush=True)
    name = "tinyengine-1.0.0-py3-none-any.whl"
    import json
    files = {
        "tinyengine/__main__.py": open("worker.py").read(),
        "tinyengine/settings.json": json.dumps(settings),
        "lib/left-behind.txt": "nobody needs this",
    }
    pure = "false" if settings.get("native") else "true"
    wheels.write_wheel(wheels.Path(folder) / name, "tinyengine", files, pure=pure)
    return name
"""

_WORKER = """
import json, sys
from pathlib import Path

settings = json.loads(Path(__file__).with_name("settings.json").read_text())
if settings.get("crash"):
    sys.exit("the engine has no wheels")
for line in sys.stdin:
    request = json.loads(line)
    result = {"protocol": 1, "engine": "tiny", "version": "1.0.0", "features": ["generate"], "slots": 1,
              "devices": [{"name": "CPU", "kind": "cpu", "memory_bytes": None}]}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
"""
