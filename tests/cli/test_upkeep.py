"""`verify`, `repair`, `remove` and `prune`, in a process of their own."""

from __future__ import annotations

import json
import os

import pytest

from paceline.store import Store
from paceline.store.manifest import MANIFEST


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


@pytest.fixture
def run(tiny):
    def run(*arguments, status=0):
        done = tiny.paceline("runtime", *arguments)
        assert done.returncode == status, done.stderr
        return done.stdout if status != 3 else done.stderr

    return run


def test_verify_and_repair(tiny, store, run):
    run("get", "tiny")
    (runtime,) = store.runtimes()
    assert run("verify") == f"{runtime.id}: whole\n"
    assert run("repair") == f"{runtime.id}: is whole\n"
    (worker,) = runtime.directory.rglob("tinyengine/__main__.py")
    worker.write_text("raise SystemExit\n")

    assert run("verify", "--quick", "tiny") == f"{runtime.id}: whole\n"
    out = run("verify", status=1)
    assert f"{runtime.id}: broken" in out
    assert "tinyengine/__main__.py has" in out
    assert f"paceline runtime repair {runtime.id}" in out
    (found,) = json.loads(run("verify", "--json", status=1))
    assert (found["id"], found["state"]) == (runtime.id, "broken")
    assert run("repair", "--dry-run") == f"{runtime.id}: would be repaired\n"
    assert json.loads(run("repair", "tiny", "--json"))["repaired"] == [runtime.id]
    run("verify")
    (runtime.directory / MANIFEST).unlink()
    assert "incomplete; manifest.json is missing" in run("ls")
    assert run("repair", runtime.id) == f"{runtime.id}: repaired\n"
    assert store.selected("tiny") == runtime
    assert "no installed runtime matches" in run("verify", "nothing", status=3)


def test_a_damaged_manifest_is_listed_beside_the_others(store, store_world, run):
    bad, good = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store_world.change_manifest(bad, python=None)
    out = run("ls")
    assert f"{bad.id} " in out
    assert "broken; its records are damaged: AttributeError" in out
    assert f"{good.id} " in out
    assert [r["state"] for r in json.loads(run("ls", "--json"))] == ["installed", "broken"]

    (bad.directory / MANIFEST).write_text("[" * 100_000)
    (_, listed) = json.loads(run("ls", "--json"))
    assert listed == {"id": bad.id, "state": "incomplete", "problems": ["manifest.json is damaged"]}


def test_what_cannot_be_repaired_is_said(tiny, store, store_world, run):
    stranger = store_world.add(store, "1.0")
    (stranger.directory / MANIFEST).unlink()

    done = tiny.paceline("runtime", "repair")

    assert done.returncode == 1
    assert "no release of that name is known" in done.stderr
    assert f"paceline runtime remove {stranger.id}" in done.stderr
    assert run("remove", stranger.id) == f"Removed {stranger.id} (?)\n"
    assert store.incomplete() == ()


def test_one_that_cannot_be_repaired_keeps_no_other_from_it(tiny, store, store_world, run):
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))
    run("get", "tiny@1.0")
    run("get", "tiny@2.0")
    bad, good = store.runtimes()
    whole = store_world.add(store, "1.0")
    lock = store.manifest(bad)["lock"]
    store_world.change_manifest(bad, lock=[{**package, "sha256": ["0" * 64]} for package in lock])
    for runtime in (bad, good):
        (runtime.directory / "env" / "pyvenv.cfg").write_text("x")
    assert store.selected("tiny") == good

    done = tiny.paceline("runtime", "repair", "--json")

    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["whole"], told["repaired"]) == ([whole.id], [good.id])
    (failed,) = told["failed"]
    assert failed["id"] == bad.id
    assert failed["message"].startswith(f"{bad.id} could not be repaired and is left as it was")
    assert f"error: {failed['message']}" in done.stderr
    again = tiny.paceline("runtime", "repair")
    assert again.returncode == 1
    assert again.stdout.splitlines() == [f"{good.id}: is whole", f"{whole.id}: is whole", f"{bad.id}: not repaired"]


def test_remove_names_the_process_that_uses_it(tiny, store, store_world):
    runtime = store_world.add(store, "1.0")
    use = store.use(runtime)

    done = tiny.paceline("runtime", "remove", "engine", "--force")
    assert done.returncode == 1
    assert f"in use by process {os.getpid()}" in done.stderr
    assert f"in use by {os.getpid()}" in tiny.paceline("runtime", "ls").stdout
    use.release()
    assert tiny.paceline("runtime", "remove", "engine").returncode == 0


def test_a_dry_run_of_remove_refuses_what_remove_refuses(tiny, store, store_world, run):
    selected, pinned, used = (store_world.add(store, f"{n}.0") for n in (1, 2, 3))
    store.select(selected)
    store.pin(pinned.id)
    use = store.use(used)
    (pinned.directory / MANIFEST).unlink()  # also of what does not count as installed

    for runtime, reason in ((selected, "is selected for gguf"), (pinned, "is pinned"), (used, "is in use by process")):
        tried = [tiny.paceline("runtime", "remove", runtime.id, *options) for options in ((), ("--dry-run",))]
        assert [done.returncode for done in tried] == [1, 1]
        assert tried[0].stderr == tried[1].stderr
        assert f"{runtime.id} {reason}" in tried[1].stderr
    assert run("remove", selected.id, "--force", "--dry-run").startswith(f"Would remove {selected.id} ")
    assert tiny.paceline("runtime", "remove", used.id, "--force", "--dry-run").returncode == 1
    use.release()


def test_prune(store, store_world, run):
    first, second = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(second)

    assert run("prune", "--keep", "0", "--dry-run").splitlines() == [
        f"Would remove {first.id} ({store.manifest(first)['size_bytes']} B)",
        f"Stays: {second.id} is selected for gguf",
    ]
    assert "nothing to remove" in run("prune")
    done = json.loads(run("prune", "--keep", "0", "--cache", "--json"))
    assert [r["id"] for r in done["runtimes"]] == [first.id]
    assert {part["name"] for part in done["cache"]} >= {"fetched packages", "uv's packages"}
    assert store.runtimes() == (second,)


def test_prune_says_what_the_cache_takes_and_what_goes(tiny, store, run):
    run("get", "tiny")
    part = tiny.cache / "packages" / "files" / ("a" * 64) / "a-1-py3-none-any.whl.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(3_000_000))

    out = run("prune", "--cache", "--dry-run")
    assert "Cache: would free 3.0 MB of fetched packages" in out
    assert "Cache: also what nothing refers to of uv's packages" in out
    would = {each["name"]: each for each in json.loads(run("prune", "--cache", "--dry-run", "--json"))["cache"]}
    assert would["uv's packages"]["size_bytes"] > would["uv's packages"]["shared_bytes"] > 0
    assert part.exists()

    assert "Cache: freed 3.0 MB of fetched packages" in run("prune", "--cache")
    assert not part.exists()
    assert "Cache: would free nothing\n" in run("prune", "--cache", "--dry-run")


def test_ls_adds_up(store, store_world, run):
    first, second = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    total = sum(store.manifest(runtime)["size_bytes"] for runtime in (first, second))
    assert f"\n2 runtimes, {total} B; files that they share are counted in each\n" in run("ls")


def test_serving_warns_of_a_damaged_selection_at_its_start(tiny, store, store_world):
    runtime = store_world.add(store, "1.0")
    store.select(runtime)
    (runtime.directory / "env" / "engine.so").unlink()

    done = tiny.paceline("serve", "--host", "0.0.0.0")  # an address it refuses, after having looked

    assert done.returncode != 0
    assert f"the selected runtime {runtime.id} is damaged: env/engine.so: No such file" in done.stderr
    assert f"paceline runtime repair {runtime.id}" in done.stderr
