"""The commands that say which runtime is used, in a process of their own over runtimes made in a moment."""

from __future__ import annotations

import json

import pytest

from paceline.store import Store


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


@pytest.fixture
def run(tiny):
    def run(*arguments, status=0):
        done = tiny.paceline("runtime", *arguments)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


def test_rollback(store, store_world, run):
    first, second = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(first)
    assert "nothing to return to" in run("rollback", status=3)
    store.select(second)  # before any model was loaded

    would, held = run("rollback", "GGUF", "--dry-run").splitlines()
    assert would == f"Would return {first.id} for GGUF, instead of {second.id}"
    assert held.startswith(f"{second.id} would be held, so that no update takes it again")
    assert (store.selected("gguf"), store.selection().holds) == (second, {})
    assert json.loads(run("rollback", "--json")) == {
        "changes": [{"format": "gguf", "from": second.id, "to": first.id}],
        "held": [second.id],
        "dry_run": False,
    }
    assert store.selected("gguf") == first
    assert f"held since {store.selection().holds[second.id].at:%Y-%m-%d}" in run("hold")
    assert "every selection is the newest" in run("select", "--latest")

    run("select", second.id)  # which ends the hold
    assert store.selection().holds == {}
    assert f"{second.id} is held, so that no update takes it again: `paceline runtime unhold" in run("rollback")
    run("hold", second.id)  # by hand, for good
    run("select", second.id)
    assert list(store.selection().holds) == [second.id]


def test_select_latest_and_unselect(store, store_world, run):
    first, second = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(first)

    assert "Would select" in run("select", "--latest", "--dry-run")
    assert run("select", "--latest") == f"Selected {second.id} for GGUF, instead of {first.id}\n"
    assert "every selection is the newest" in run("select", "--latest")
    store.hold(second.id)
    assert run("select", "engine", "--latest") == f"Selected {first.id} for GGUF\n"
    assert "names a version already" in run("select", "engine@1.0", "--latest", status=2)
    assert "QUERY is missing" in run("select", status=2)

    assert "Would unselect" in run("unselect", "gguf", "--dry-run")
    assert run("unselect", "GGUF") == f"Unselected {first.id} for GGUF\n"
    assert "nothing is selected for gguf" in run("unselect", "gguf", status=3)
    assert "give a FORMAT or --model" in run("unselect", status=2)


def test_a_model_gets_a_runtime_of_its_own(tiny, store, store_world, run, write_gguf):
    runtime = store_world.add(store, "1.0")
    other = store_world.add(store, "1.0", formats=("mlx",), platform="other")
    write_gguf(
        tiny.home / "models" / "me" / "small" / "small.gguf", {"general.architecture": "llama"}, [("w", (32,), 0)]
    )

    assert "no model is called 'nobody'" in run("select", runtime.id, "--model", "nobody", status=3)
    assert "serves mlx, and small is a gguf model" in run("select", other.id, "--model", "small", status=2)
    run("select", runtime.id, "--model", "small", "--dry-run")
    assert store.selected("gguf", "small") is None
    assert run("select", runtime.id, "--model", "small") == f"Selected {runtime.id} for the model small\n"
    assert store.selected("gguf", "small") == runtime
    assert "for small" in run("ls")
    assert run("unselect", "--model", "small") == f"Unselected {runtime.id} for small\n"
    assert "has no runtime of its own" in run("unselect", "--model", "small", status=3)
    for name in ("me/small", "SMALL", "small.gguf"):
        run("select", runtime.id, "--model", name)
        assert store.selection().models == {"small": runtime.id}
        assert run("unselect", "--model", name) == f"Unselected {runtime.id} for small\n"
        assert store.selection().models == {}
    run("select", runtime.id, "--model", "small")
    (tiny.home / "models" / "me" / "small" / "small.gguf").unlink()
    assert run("unselect", "--model", "Small") == f"Unselected {runtime.id} for small\n"  # gone, and known all the same


def test_a_dry_run_of_select_refuses_what_select_refuses(tiny, store, store_world, run, write_gguf):
    runtime = store_world.add(store, "1.0")
    (runtime.directory / "env" / "engine.so").unlink()
    write_gguf(
        tiny.home / "models" / "me" / "small" / "small.gguf", {"general.architecture": "llama"}, [("w", (32,), 0)]
    )
    for options in ((), ("--latest",), ("--model", "small")):
        said = [run("select", "engine", *options, *dry, status=1) for dry in ((), ("--dry-run",))]
        assert said[0] == said[1]
        assert f"{runtime.id} is broken: env/engine.so" in said[1]
        assert f"help: `paceline runtime repair {runtime.id}`" in said[1]


def test_pins_and_holds(tiny, store, store_world, run):
    runtime = store_world.add(store, "1.0")
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))

    assert run("pin", "engine", "--dry-run") == f"Would pin {runtime.id}\n"
    assert store.selection().pins == ()
    assert json.loads(run("pin", "engine", "--json")) == {"runtime": runtime.id, "change": "pin", "dry_run": False}
    assert "installed, pinned" in run("ls")
    assert run("hold", "tiny@2.0") == "Held tiny-any-cpu@2.0\n"  # a release that is not installed
    assert "means several versions" in run("hold", "tiny", status=1)
    assert "no installed runtime matches" in run("hold", "nothing", status=3)
    assert run("hold", "tiny-any-cpu@9.9") == "Held tiny-any-cpu@9.9\n"  # and one that nobody lists yet
    assert "the full name is needed" in run("hold", "tiny@9.9", status=3)
    assert "is no version" in run("hold", "tiny-any-cpu@9/9", status=2)
    run("unhold", "9.9")

    plan = json.loads(run("get", "tiny", "--dry-run", "--json"))
    assert plan["release"] == "tiny-any-cpu@1.0"
    assert json.loads(run("get", "tiny@2.0", "--dry-run", "--json"))["release"] == "tiny-any-cpu@2.0"
    run("hold", "tiny@1.0")
    assert "every release that matches is held" in run("get", "tiny", status=3)
    assert "nothing held matches" in run("unhold", "tiny@3.0", status=3)
    run("unhold", "tiny:cpu@1.0")
    run("unhold", "2.0")
    assert json.loads(run("get", "tiny", "--dry-run", "--json"))["release"] == "tiny-any-cpu@2.0"
    run("unpin", "engine")
    assert store.selection().pins == ()
    assert "nothing pinned matches" in run("unpin", "engine", status=3)


def test_why_something_is_held_is_told(tiny, store, store_world, run):
    runtime = store_world.add(store, "1.0")
    tiny.offer(tiny.release("2.0"))
    assert run("hold") == "nothing is held\n"
    assert "a reason is given and no QUERY" in run("hold", "--reason", "it leaks", status=2)
    assert run("hold", "engine", "--reason", "it leaks", "--dry-run") == f"Would hold {runtime.id}: it leaks\n"
    assert store.selection().holds == {}

    assert run("hold", "engine", "--reason", "it leaks") == f"Held {runtime.id}: it leaks\n"
    run("hold", "tiny@2.0")
    since = f"{store.selection().holds[runtime.id].at:%Y-%m-%d %H:%M} UTC"
    assert run("hold", "engine") == f"Already held: {runtime.id} is held since {since}: it leaks\n"
    told = run("hold").splitlines()
    assert told[0] == f"{runtime.id} is held since {since}: it leaks"
    assert told[1].startswith("tiny-any-cpu@2.0 is held since ")
    assert run("ls").splitlines()[-2:] == told  # also what is not installed
    held = json.loads(run("hold", "--json"))
    assert [hold["reason"] for hold in held.values()] == ["it leaks", None]
    (listed,) = json.loads(run("ls", "--json"))
    assert (listed["held"], listed["hold"]) == (True, held[runtime.id])


def test_what_stands_in_for_a_runtime_is_told_and_sent_away(store, store_world, run):
    old, new = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(new)
    store.stand_in(old, new, "gguf", "small", "a new quantization")
    found = store.selection().stand_in("small")

    assert run("ls").splitlines()[-1] == (
        f"small is served by {old.id} since {found.at:%Y-%m-%d %H:%M} UTC, because {new.id} did not load it: "
        "a new quantization"
    )
    listed = {r["id"]: r for r in json.loads(run("ls", "--json"))}
    assert listed[old.id]["stands_in_for"] == {
        "small": {
            "runtime": old.id,
            "instead_of": new.id,
            "format": "gguf",
            "reason": "a new quantization",
            "at": found.at.isoformat(),
        }
    }
    assert (listed[new.id]["stands_in_for"], listed[new.id]["hold"]) == ({}, None)
    assert run("unselect", "--model", "small", "--dry-run") == f"Would unselect {old.id} for small\n"
    assert run("unselect", "--model", "small") == f"Unselected {old.id} for small\n"
    assert store.selected("gguf", "small") == new
    assert "has no runtime of its own" in run("unselect", "--model", "small", status=3)


def test_a_home_that_is_a_file_is_said(tiny, run):
    tiny.home.write_text("mine")
    for command in (("ls",), ("select", "--latest"), ("rollback",), ("hold", "tiny@2.0"), ("pin", "tiny")):
        said = run(*command, status=1)
        assert f"help: move {tiny.home} away, a file where a folder has to be; or set PACELINE_HOME" in said
    assert tiny.home.read_text() == "mine"
