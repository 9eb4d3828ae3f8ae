"""Every command over a home and a cache that cannot be written, or not even read: what reads works, what writes says
what it was refused and how to mend that."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from paceline.manager.bundles import CONTENTS
from paceline.registry import registry_value, trust, upstream
from paceline.store import Store
from paceline.tokens import Permission, Tokens

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts and capabilities are Linux's")

COMMANDS = Path(__file__).with_name("commands.py")
READING = """
ls | pairs | tokens ls | plugins ls | bundle ls BUNDLE | registry ls | runtime ls | runtime get --list
runtime get tiny --dry-run | runtime select engine@1.0 --dry-run | runtime rollback --dry-run | runtime survey
runtime prune --dry-run | runtime remove engine@1.0 --dry-run | runtime verify engine
runtime repair --dry-run | runtime pin engine@1.0 --dry-run | runtime update --check
"""
WRITING = """
tokens create desk | tokens revoke laptop | registry remove example | bundle install BUNDLE | runtime get tiny
runtime select engine@1.0 | runtime select --latest | runtime unselect made | runtime rollback | runtime pin engine@1.0
runtime hold engine@2.0 | runtime unhold tiny | runtime repair tiny | runtime remove engine@1.0 | runtime prune
runtime prune --cache | plugins install WHEEL -y | plugins update -y | plugins remove owl -y | doctor --fix
bundle create tiny -o ELSEWHERE | runtime unpin engine@3.0 | runtime update --registry-only
runtime link tiny-cpu ENVIRONMENT
"""


def commands(text):
    return [command.split() for line in text.split("\n") if line for command in line.split(" | ")]


class World:
    """A folder with a home of everything, a cache and packages, and what runs commands where it is not writable."""

    def __init__(self, folder, tiny_engine, store_world, patch):
        self.folder = folder / "world"
        self.tiny = tiny_engine.TinyWorld(self.folder)
        self.env = self.tiny.environment() | {"PACELINE_PLUGINS": "tiny,llama-cpp", "PYTHONDONTWRITEBYTECODE": "1"}
        for name, value in self.env.items():
            patch.setenv(name, value)
        self.home, store = self.tiny.home, Store(self.tiny.home)
        assert self.tiny.paceline("runtime", "get", "tiny").returncode == 0
        installed = self.home / "runtimes" / "tiny-any-cpu@1.0.0"
        self.by_hand = shutil.copytree(installed / "env", self.folder / "by-hand", symlinks=True)
        (installed / "files.json").write_text("{}")
        old, new = (store_world.add(store, version, formats=("made",)) for version in ("1.0", "2.0"))
        store.select(old)
        store.note_loaded(old, "made")
        store.select(new)
        store.hold("tiny-any-cpu@9.0")
        store.pin(store_world.add(store, "3.0", formats=("made",)).id)
        self.tiny.offer(self.tiny.release(), self.tiny.release("1.1.0"))
        (store.staging / "left-behind").mkdir(parents=True)
        Tokens(self.home).create("laptop", [Permission.INFERENCE])
        trust.remember_trust(trust.make_trusted(self.home, "http://127.0.0.1:9/", {"signed": {}}, "example"))
        upstream.remember(self.home / "upstream.json", [self.tiny.release("0.9")])
        (self.home / "models").mkdir()
        self.bundle = self._write_bundle()
        self.elsewhere = folder / "other.bundle"
        self.folder.chmod(0o755)

    def run(self, prefix, text, **environment):
        """What each of the commands came to, by its words."""
        places = {"BUNDLE": self.bundle, "ELSEWHERE": self.elsewhere}
        places["ENVIRONMENT"] = self.by_hand
        places["WHEEL"] = self.tiny.index / "tinydep-1.0.0-py3-none-any.whl"
        wanted = [[str(places.get(word, word)) for word in command] for command in commands(text)]
        done = subprocess.run(
            [*prefix, sys.executable, str(COMMANDS), json.dumps(wanted)],
            env={**os.environ, **self.env, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return list(zip(map(" ".join, commands(text)), json.loads(done.stdout), strict=True))

    def _write_bundle(self):
        release, path = self.tiny.release(), self.folder / "made.bundle"
        hashes = {package.sha256[0] for package in (*release.recipe.packages, *release.recipe.build_packages)}
        files = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in self.tiny.index.iterdir()}
        listed = [(file, digest) for file, digest in files.items() if digest in hashes]
        contents = {
            "format": 1,
            "pythons": [".".join(platform.python_version_tuple()[:2])],
            "registry": registry_value([release]),
            "files": [{"name": f.name, "sha256": digest, "size": f.stat().st_size} for f, digest in listed],
        }
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(CONTENTS, json.dumps(contents))
            for file, digest in listed:
                archive.write(file, f"files/{digest}/{file.name}")
        return path


def test_the_page_says_how_many_commands_these_are():
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    assert f"{len(commands(READING))} commands that read and {len(commands(WRITING))} that write " in page


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_engine, store_world):
    with pytest.MonkeyPatch.context() as patch:
        yield World(tmp_path_factory.mktemp("unwritable"), tiny_engine, store_world, patch)


def read_only(folder):
    """What runs a program for which the file system of `folder` is read-only; skips where nothing can be mounted."""
    script = 'mount --bind "$0" "$0"; mount -o remount,ro,bind "$0"; exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-euc", script, str(folder)]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    return prefix


@contextmanager
def without(rights, paths):
    """What runs a program without `rights` (bits of a mode) on `paths`, though this process may do all."""
    prefix = [] if os.geteuid() else ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
    if prefix and (not shutil.which(prefix[0]) or subprocess.run([*prefix, "true"], capture_output=True).returncode):
        pytest.skip("root's rights cannot be given up")
    modes = {path: path.stat().st_mode for path in paths if not path.is_symlink()}
    for path, mode in modes.items():
        path.chmod(mode & ~rights)
    try:
        yield prefix
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def check(world, prefix, reason, mend):
    for command, done in world.run(prefix, READING):
        assert done["status"] == (100 if command == "runtime update --check" else 0), (command, done)
        assert "Traceback" not in done["err"], (command, done)
    for command, done in world.run(prefix, WRITING):
        lines = done["err"].splitlines()
        help = [line for line in lines if line.startswith("help: ")]
        assert done["status"] == 1, (command, done)
        assert reason in done["err"], (command, done)
        assert "Traceback" not in done["err"], (command, done)
        assert len(help) == 1, (command, done)
        assert help[0].startswith(f"help: {mend}"), (command, done)
        assert f"{world.folder}/" in help[0], (command, done)
        assert help[0].endswith("to another folder"), (command, done)
    ((_, doctor),) = world.run(prefix, "doctor")
    assert f"{world.home} cannot be written: {reason}" in doctor["out"]
    assert f"{world.tiny.cache} cannot be written: {reason}" in doctor["out"]
    assert "this check failed" not in doctor["out"]


def test_on_a_file_system_that_is_read_only(world):
    check(world, read_only(world.folder), "Read-only file system", "make ")


def test_where_writing_is_not_permitted(world):
    with without(0o222, [world.folder, *world.folder.rglob("*")]) as prefix:
        check(world, prefix, "Permission denied", "give yourself the right to read and write ")


def test_in_a_home_that_nobody_lets_in(world):
    with without(0o777, [world.home]) as prefix:
        for command, done in world.run(prefix, READING + WRITING):
            assert "Traceback" not in done["err"], (command, done)
            if command in ("ls", "pairs", "plugins ls", "bundle ls BUNDLE"):  # they need no home
                assert done["status"] == 0, (command, done)
            else:
                assert done["status"] == 1, (command, done)
                assert "Permission denied" in done["err"], (command, done)
                assert "help: give yourself the right to read and write " in done["err"], (command, done)
        ((_, doctor),) = world.run(prefix, "doctor")
        assert "this check failed" not in doctor["out"]


def test_models_are_served_from_a_file_system_that_is_read_only(world):
    command = [*read_only(world.folder), sys.executable, "-m", "paceline", "serve", "--port", "0"]
    with subprocess.Popen(command, env={**os.environ, **world.env}, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().rsplit(" ", 1)[1].strip()
            for path, found in (("/v1/models", "paceline-coder-3m"), ("/api/v1/runtimes", "engine-linux-cpu@2.0")):
                with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
                    assert found in answer.read().decode()
        finally:
            server.terminate()
