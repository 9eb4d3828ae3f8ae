from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.packages import byte_code
from paceline.store.digests import Digests

SOURCES = {
    "module.py": "def name():\n    return __name__\n",
    "package/__init__.py": "",
    "package/part.py": "X = 1\n",
    "package/also_part.py": "X = 1\n",
    "package/template.py": "class {{ name }}:\n",
}
LOOK = """
import sys
sys.path.insert(0, sys.argv[1])
import module, package.part
print(module.name(), module.name.__code__.co_filename, package.part.X)
"""


class World:
    """Environments that share a cache."""

    def __init__(self, folder):
        self.folder = folder
        self.cache = folder / "cache"

    def environment(self, name, **changed):
        environment = self.folder / name
        for source, text in {**SOURCES, **{f"{k}.py": text for k, text in changed.items()}}.items():
            file = self.packages(environment) / source
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        byte_code.bring(environment, self.cache, Digests())
        return environment

    def packages(self, environment):
        return environment / "lib" / "python3.11" / "site-packages"

    def code(self, environment):
        """By its module, the byte code in an environment."""
        return {file.name.partition(".")[0]: file for file in environment.rglob("*.pyc")}


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_every_module_that_compiles_has_byte_code_which_is_not_tied_to_the_time_of_its_source(world):
    code = world.code(world.environment("a"))

    assert code.keys() == {"module", "__init__", "part", "also_part"}
    assert all(int.from_bytes(file.read_bytes()[4:8], "little") == 0b01 for file in code.values())


def test_a_second_environment_has_links_to_the_same_byte_code_and_it_runs_with_its_own_path(world):
    first, second = world.environment("a"), world.environment("b")
    inodes = [{name: file.stat().st_ino for name, file in world.code(e).items()} for e in (first, second)]

    command = [sys.executable, "-I", "-B", "-c", LOOK, world.packages(second)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert inodes[0] == inodes[1]
    assert said.split() == ["module", str(world.packages(second) / "module.py"), "1"]


def test_only_what_changed_is_compiled(world, monkeypatch):
    world.environment("a")
    compiled = []
    monkeypatch.setattr(byte_code, "_compile", lambda packages, sources: compiled.extend(sources))

    world.environment("b", module="X = 2\n")

    assert compiled == ["module.py", "package/template.py"]  # what does not compile is tried again


def test_damaged_byte_code_is_made_anew_in_the_environment_and_in_the_cache(world):
    first = world.environment("a")
    whole = world.code(first)["module"].read_bytes()
    world.code(first)["module"].write_bytes(whole[:-1] + b"x")

    second, third = world.environment("b"), world.environment("c")

    code = world.code(second)["module"]
    assert code.read_bytes() == whole
    assert code.samefile(world.code(third)["module"])


def test_byte_code_is_copied_where_it_cannot_be_linked(world, monkeypatch):
    first = world.environment("a")

    def refuse(self, target):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    second = world.environment("b")

    codes = world.code(first), world.code(second)
    assert {n: f.read_bytes() for n, f in codes[0].items()} == {n: f.read_bytes() for n, f in codes[1].items()}
    assert not codes[0]["module"].samefile(codes[1]["module"])


def test_what_another_process_keeps_at_the_same_time_keeps_nothing_else_away(world, monkeypatch):
    link, refused = Path.hardlink_to, []

    def lose_the_first(self, target):
        if world.cache in self.parents and not refused:
            refused.append(self)
            raise FileExistsError(errno.EEXIST, "File exists", str(self))
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", lose_the_first)
    texts = len({*SOURCES.values()}) - 1  # one does not compile
    world.environment("a")

    assert len(refused) == 1
    assert len(list(world.cache.rglob("*-*/*/*-*"))) == texts - 1


def test_without_a_cache_everything_is_compiled(world):
    world.cache.write_text("a file, not a folder")

    assert len(world.code(world.environment("a"))) == 4


def test_byte_code_that_a_package_brings_is_left_alone(world):
    packages = world.packages(world.folder / "a")
    brought = packages / "__pycache__" / f"module.{sys.implementation.cache_tag}.pyc"
    brought.parent.mkdir(parents=True)
    brought.write_bytes(b"its own")

    world.environment("a")

    assert brought.read_bytes() == b"its own"


def test_clearing_deletes_what_no_environment_uses(world):
    used = world.environment("a")
    unused = world.environment("b", module="X = 2\n")
    gone = world.code(unused)["module"]
    gone.unlink()
    kept = [file for file in (world.cache / byte_code.FOLDER).rglob("*") if file.is_file()]
    (unneeded,) = (file for file in kept if file.stat().st_nlink == 1)

    byte_code.clear(world.cache)

    assert [file for file in kept if not file.exists()] == [unneeded]
    assert all(file.stat().st_nlink > 1 for file in world.code(used).values())
