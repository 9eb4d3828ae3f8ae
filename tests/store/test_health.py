from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys

import pytest

from paceline.errors import StoreError
from paceline.manager.cleanup import plan_cleanup
from paceline.store import Store, health
from paceline.store.health import State
from paceline.store.manifest import FILES, MANIFEST


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def runtime(store, store_world):
    return store_world.add(store)


def test_what_was_installed_is_whole(runtime):
    for check in (health.glance, health.quick, health.sizes, health.full):
        assert check(runtime.directory) == health.Health(State.INSTALLED)


def test_a_home_that_moved_is_whole(store, runtime, tmp_path):
    store.select(runtime)
    store.home.rename(tmp_path / "elsewhere")
    moved = Store(tmp_path / "elsewhere")

    selected = moved.selected("gguf")
    assert selected.id == runtime.id
    assert health.full(selected.directory).ok


@pytest.mark.parametrize(
    ("damage", "quick", "full"),
    [
        ("library gone", "env/engine.so: No such file or directory", "env/engine.so is missing"),
        ("library cut", "env/engine.so has 3 bytes instead of 18", "env/engine.so has 3 bytes instead of 18"),
        ("module changed", None, "env/engine.py was changed"),
        ("module gone", None, "env/engine.py is missing"),
        ("module added", None, "env/new.py does not belong to it"),
        ("link turned", None, "env/bin/python leads elsewhere"),
        ("list changed", None, f"{FILES} was changed"),
        ("list gone", f"{FILES} is missing", f"{FILES} cannot be read: No such file or directory"),
    ],
)
def test_damage_is_named(runtime, damage, quick, full, tmp_path):
    env = runtime.directory / "env"
    if damage == "library gone":
        (env / "engine.so").unlink()
    elif damage == "library cut":
        (env / "engine.so").write_text("cut")
    elif damage == "module changed":
        text = (env / "engine.py").read_text()
        (env / "engine.py").write_text(text.swapcase())
    elif damage == "module gone":
        (env / "engine.py").unlink()
    elif damage == "module added":
        (env / "new.py").write_text("")
    elif damage == "link turned":
        other = tmp_path / "python"
        other.symlink_to(sys.executable)
        (env / "bin" / "python").unlink()
        (env / "bin" / "python").symlink_to(other)
    elif damage == "list changed":
        (runtime.directory / FILES).write_text("{}")
    else:
        (runtime.directory / FILES).unlink()

    found = health.full(runtime.directory)
    assert found.state is State.BROKEN
    assert full in found.problems[0]
    seen = health.quick(runtime.directory)
    assert seen.state is (State.BROKEN if quick else State.INSTALLED)
    assert (quick in seen.problems[0]) if quick else not seen.problems
    # Sizes do not tell what was overwritten by as much, and nothing lacks where something was added.
    unseen = damage in ("module changed", "module added")
    assert health.sizes(runtime.directory) == (health.Health(State.INSTALLED) if unseen else found)


def test_byte_code_of_a_curious_user_harms_nothing(runtime):
    cache = runtime.directory / "env" / "__pycache__"
    cache.mkdir()
    (cache / "engine.cpython-311.pyc").write_bytes(b"")

    assert health.full(runtime.directory).ok
    assert health.sizes(runtime.directory).ok


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, "is missing"), ("{", "is damaged"), ('{"schema_version": 7}', "another Paceline (schema_version 7)")],
)
def test_without_its_manifest_a_runtime_is_incomplete(runtime, text, why):
    manifest = runtime.directory / MANIFEST
    manifest.unlink() if text is None else manifest.write_text(text)

    found = health.quick(runtime.directory)
    assert found.state is State.INCOMPLETE
    assert why in found.problems[0]


DEEP = "[" * 100_000


@pytest.mark.parametrize("wrong", [None, 5, "x", [], {}, [None], {"a": None}, True, 1.5])
def test_whatever_a_manifest_says_somebody_is_told(runtime, store, wrong):
    """No value of any of its fields ends a check, or a list, with an error."""
    good = json.loads((runtime.directory / MANIFEST).read_text())
    told = {}
    for field in good:
        (runtime.directory / MANIFEST).write_text(json.dumps({**good, field: wrong}))
        health.glance(runtime.directory), health.sizes(runtime.directory), health.full(runtime.directory)
        told[field] = health.quick(runtime.directory)
        store.runtimes()
        plan_cleanup(store, 0)
    if wrong not in ({}, {"a": None}):  # a Python of which nothing is said
        assert "its records are damaged" in told["python"].problems[0]
        assert told["quick_check"].ok == (wrong is None)  # as of an older Paceline


def test_records_that_are_nested_too_deeply(runtime, store):
    store.select(runtime)
    (runtime.directory / FILES).write_text(DEEP)
    files_sha256 = hashlib.sha256(DEEP.encode()).hexdigest()
    manifest = json.loads((runtime.directory / MANIFEST).read_text())
    (runtime.directory / MANIFEST).write_text(json.dumps({**manifest, "files_sha256": files_sha256}))
    assert "files.json is nested too deeply" in health.full(runtime.directory).problems[0]

    (runtime.directory / MANIFEST).write_text(DEEP)
    assert health.glance(runtime.directory) == health.Health(State.INCOMPLETE, (f"{MANIFEST} is damaged",))
    assert store.runtimes() == ()

    (store.home / "selection.json").write_text(DEEP)
    with pytest.raises(StoreError, match=r"the selection .* cannot be read: .* is nested too deeply"):
        store.selection()


def test_a_base_python_that_is_gone_is_said(runtime, tmp_path):
    python = runtime.directory / "env" / "bin" / "python"
    base = tmp_path / "python3.11"
    shutil.copy(sys.executable, base)
    python.unlink()
    python.symlink_to(base)
    base.unlink()

    (problem, *_) = health.glance(runtime.directory).problems
    assert problem == f"the Python it was built on is gone: {base}"


def test_another_base_python_is_said(runtime, store_world, tmp_path):
    store_world.change_manifest(runtime, python={"version": "3.4.1", "base": "python3.4"})

    named = os.path.realpath(sys.executable).rpartition("/")[2].startswith("python3.")
    (problem, *_) = (health.glance if named else health.full)(runtime.directory).problems
    assert "it was built on Python 3.4" in problem


@pytest.mark.skipif(health.libc() is None, reason="this system has no glibc")
def test_an_older_or_another_c_library_is_said(runtime, store_world, monkeypatch):
    store_world.change_manifest(runtime, libc="glibc 2.1")
    assert health.glance(runtime.directory).ok

    store_world.change_manifest(runtime, libc="glibc 99.1")
    (problem,) = health.glance(runtime.directory).problems
    assert problem == f"it was installed on glibc 99.1, and this system has {health.libc()}"

    monkeypatch.setattr(health, "libc", lambda: None)
    (problem,) = health.glance(runtime.directory).problems
    assert problem == "it was installed on glibc 99.1, and this system has another C library"


def test_many_problems_are_counted(runtime):
    for n in range(9):
        (runtime.directory / f"new{n}").write_text("")

    problems = health.full(runtime.directory).problems
    assert len(problems) == 6
    assert problems[-1] == "and 4 more"


def test_runtimes_of_an_older_paceline_are_checked_by_the_list_of_files(runtime):
    manifest = runtime.directory / MANIFEST
    data = json.loads(manifest.read_text())
    for later in ("quick_check", "libc"):
        del data[later]
    manifest.write_text(json.dumps(data))
    assert health.quick(runtime.directory).ok

    (runtime.directory / "env" / "engine.so").unlink()
    assert health.quick(runtime.directory).state is State.BROKEN
