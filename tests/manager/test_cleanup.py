from __future__ import annotations

import os

import pytest

from paceline.manager.cleanup import KEPT_LOGS, clean_up, plan_cleanup
from paceline.progress import Phase
from paceline.store import Store
from paceline.store.manifest import MANIFEST


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def use_at(store, runtime, seconds):
    """Have `runtime` used last so many seconds after 1970."""
    store.use(runtime).release()
    os.utime(store.home / "uses" / runtime.id / "last", (seconds, seconds))


def test_the_least_recently_used_go_first(store, store_world):
    old, never, recent = (store_world.add(store, f"{n}.0") for n in range(1, 4))
    use_at(store, old, 2_000_000_000)
    use_at(store, recent, 2_000_000_100)

    assert plan_cleanup(store, 2).runtimes == (never,)
    assert plan_cleanup(store, 0).runtimes == (never, old, recent)
    assert clean_up(store, 1).runtimes == (never, old)
    assert store.runtimes() == (recent,)
    assert list(store.staging.iterdir()) == []


def test_what_is_needed_stays(store, store_world):
    selected, of_a_model, pinned, last_good, in_use, idle = (store_world.add(store, f"{n}.0") for n in range(1, 7))
    store.select(last_good)
    store.note_loaded(last_good, "gguf")
    store.select(selected)
    store.select_for_model(of_a_model, "m")
    store.pin(pinned.id)
    use = store.use(in_use)

    done = clean_up(store, 0)

    assert done.runtimes == (idle,)
    assert {r.id for r in store.runtimes()} == {r.id for r in (selected, of_a_model, pinned, last_good, in_use)}
    assert len(done.kept) == 5
    assert store.rollback() == {"gguf": last_good}
    use.release()
    # What was left by rolling back is needed no more.
    assert clean_up(store, 0).runtimes == (selected, in_use)


def test_where_rollback_goes_past_what_is_broken_stays(store, store_world):
    target, broken, selected = (store_world.add(store, f"{n}.0") for n in range(1, 4))
    for runtime in (target, broken):
        store.select(runtime)
        store.note_loaded(runtime, "gguf")
    store.select(selected)
    (broken.directory / "env" / "engine.so").unlink()

    assert clean_up(store, 0).runtimes == ()
    assert store.rollback() == {"gguf": target}


@pytest.mark.parametrize("damage", ["the manifest is gone", "the manifest is cut", "a newer Paceline made it"])
def test_what_rollback_would_return_to_stays_whatever_its_manifest_is(store, store_world, damage):
    older, target, selected = (store_world.add(store, f"{n}.0") for n in range(1, 4))
    for runtime in (older, target):
        store.select(runtime)
        store.note_loaded(runtime, "gguf")
    store.select(selected)
    manifest = target.directory / MANIFEST
    before = manifest.read_text()
    if damage == "the manifest is gone":
        manifest.unlink()
    elif damage == "the manifest is cut":
        manifest.write_text(before[:50])
    else:
        store_world.change_manifest(target, schema_version=2)

    for done in (plan_cleanup(store, 0), clean_up(store, 0)):
        assert done.runtimes == done.incomplete == ()
        reason = f"{target.id} is what `paceline runtime rollback` would return gguf to, once it is mended"
        assert reason in done.kept
        assert f"{older.id} is what `paceline runtime rollback` would return gguf to" in done.kept

    manifest.write_text(before)
    assert store.rollback() == {"gguf": target}


def test_what_is_whole_and_not_this_pacelines_stays(store, store_world):
    newer, renamed, damaged, bare = (store_world.add(store, f"{n}.0") for n in range(1, 5))
    store_world.change_manifest(newer, schema_version=2, formats={"gguf": []})
    renamed.directory.rename(renamed.directory.with_name("put-aside"))
    (damaged.directory / MANIFEST).write_text("{")
    (bare.directory / MANIFEST).unlink()

    for done in (plan_cleanup(store, 0), clean_up(store, 0)):
        assert done.incomplete == (damaged.id, bare.id)
        assert done.kept == (
            f"the manifest of {newer.id} is of a newer Paceline (schema_version 2)",
            f"the manifest of put-aside is that of {renamed.id}",
        )
    assert sorted(f.name for f in store.folder.iterdir()) == [newer.id, "put-aside"]


def test_what_is_in_use_or_selected_is_not_said_to_go(store, store_world):
    selected, used = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(selected)
    use = store.use(used)
    for runtime in (selected, used):
        (runtime.directory / MANIFEST).unlink()

    plan = plan_cleanup(store, 0)

    assert plan.incomplete == ()
    assert plan.kept == (f"{selected.id} is selected for gguf", f"{used.id} is in use by process {os.getpid()}")
    use.release()


def test_what_an_installation_made_that_was_waited_for_is_no_leftover(store, store_world):
    installing, staged = store.installing(), store.staging / "engine-linux-cpu@1.0.77"
    installing.__enter__()
    store_world.stage(staged, "1.0")
    left = store.staging / "engine@3.77"
    left.mkdir()

    def progress(phase, done=0, total=None, message=""):
        assert phase is Phase.WAIT
        store.publish(staged, "engine-linux-cpu@1.0")
        installing.__exit__(None, None, None)

    assert plan_cleanup(store, 1).leftovers == (staged, left)
    assert clean_up(store, 1, progress).leftovers == (left,)
    assert not left.exists()


def test_leftovers_go_and_an_incomplete_runtime_unless_it_is_selected(store, store_world):
    selected, other = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(selected)
    for runtime in (selected, other):
        (runtime.directory / MANIFEST).unlink()
    (store.staging / "engine@3.77").mkdir(parents=True)
    store.logs.mkdir()
    for n in range(KEPT_LOGS + 2):
        (store.logs / f"{n}.log").write_text("")
        os.utime(store.logs / f"{n}.log", (n, n))

    done = clean_up(store, 0)

    assert done.incomplete == (other.id,)
    assert selected.directory.exists()
    assert not other.directory.exists()
    assert list(store.staging.iterdir()) == []
    assert sorted(file.name for file in store.logs.iterdir()) == [f"{n}.log" for n in range(2, KEPT_LOGS + 2)]


def test_a_clock_set_back_only_changes_the_order(store, store_world):
    first, second = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(first)
    use_at(store, first, 10)
    use_at(store, second, 4_000_000_000)

    assert clean_up(store, 0).runtimes == (second,)
    assert store.selected("gguf") == first


def test_the_order_of_uses_survives_a_clock_that_was_ahead(store, store_world):
    first, second, third = (store_world.add(store, f"{n}.0") for n in range(1, 4))
    use_at(store, first, 4_000_000_000)  # the clock was ahead, and is right again

    for runtime in (second, third, first, second):
        store.use(runtime).release()

    assert plan_cleanup(store, 0).runtimes == (third, first, second)
