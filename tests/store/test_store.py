from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from paceline.errors import AmbiguousError, InUseError, NotFoundError, StoreError
from paceline.manager.cleanup import clean_up
from paceline.store import Selection, Store, health, selection, transaction
from paceline.store.manifest import MANIFEST
from paceline.store.reading import Fallback
from paceline.store.selection import Hold


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def add(store, store_world):
    """Put a runtime there, as an installation leaves it."""
    return partial(store_world.add, store)


def test_an_absent_home_is_empty(store):
    assert store.runtimes() == ()
    assert store.selection() == Selection()
    assert store.selected("gguf") is None
    assert not store.home.exists()


def test_runtimes_are_listed_by_name_and_newest_first(store, add):
    for version in ("0.9", "b9999", "0.10", "b10000"):
        add(version)
    add("1.0", platform="linux-b")

    assert [r.id for r in store.runtimes()] == [
        "engine-linux-b@1.0",
        "engine-linux-cpu@0.10",
        "engine-linux-cpu@0.9",
        "engine-linux-cpu@b10000",
        "engine-linux-cpu@b9999",
    ]


@pytest.mark.parametrize(
    "manifest",
    [None, "", "{", "[]", "{}", '{"schema_version": 1, "engine": "engine"}'],
    ids=["absent", "empty", "cut off", "a list", "an empty object", "incomplete"],
)
def test_a_folder_without_a_whole_manifest_does_not_count(store, add, manifest):
    runtime = add()
    if manifest is None:
        (runtime.directory / MANIFEST).unlink()
    else:
        (runtime.directory / MANIFEST).write_text(manifest)

    assert store.runtimes() == ()
    assert store.find(runtime.id) is None


def test_a_renamed_folder_does_not_count(store, add):
    runtime = add()
    runtime.directory.rename(runtime.directory.with_name("engine-linux-cpu@2.0"))

    assert store.runtimes() == ()


def test_a_newer_manifest_does_not_count(store, add, store_world):
    store_world.change_manifest(add(), schema_version=2)

    assert store.runtimes() == ()
    assert store.incomplete() == ("engine-linux-cpu@1.0",)


def test_a_runtime_is_found_by_query(store, add):
    old, new = add("1.0"), add("2.0")

    assert store.get("engine@1.0.0") == old
    assert store.get(new.id) == new
    same = add("1.0.0")
    assert [store.get(old.id), store.get(same.id)] == [old, same]
    store.remove(same)
    with pytest.raises(AmbiguousError, match=r"engine-linux-cpu@2\.0, engine-linux-cpu@1\.0"):
        store.get("engine")
    with pytest.raises(NotFoundError, match=r"installed: engine-linux-cpu@2\.0"):
        store.get("mlx")


def test_a_selection_serves_its_formats(store, add):
    one, both = add("1.0"), add("2.0", formats=("gguf", "mlx"))

    assert store.select(one) == ("gguf",)
    assert store.select_where_none(both) == ("mlx",)
    assert (store.selected("gguf"), store.selected("mlx")) == (one, both)
    assert store.select(both) == ("gguf",)
    assert store.select(both) == ()
    assert store.selection().formats_of(both.id) == ("gguf", "mlx")
    assert store.selected("onnx") is None


def test_a_model_may_have_its_own_runtime(store, add):
    for_all, for_one = add("1.0"), add("2.0")
    store.select(for_all)
    file = store.home / "selection.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"models": {"m": for_one.id, "n": "engine-gone@1"}}))

    assert store.selected("gguf", "m") == for_one
    assert store.selected("gguf", "n") == for_all
    assert store.selected("gguf", "other") == for_all
    with pytest.raises(InUseError, match="is selected for model m"):
        store.remove(for_one)


def test_a_selection_of_what_is_gone_selects_nothing_and_can_be_replaced(store, add):
    old = add("1.0")
    store.select(old)
    (old.directory / MANIFEST).unlink()

    assert store.selected("gguf") is None
    with pytest.raises(NotFoundError):
        store.select(old)
    new = add("2.0")
    assert store.select_where_none(new) == ("gguf",)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', '{"schema_version": 9, "formats": {}}'])
def test_a_damaged_selection_is_said_and_not_overwritten(store, add, text):
    runtime = add()
    file = store.home / "selection.json"
    file.write_text(text)

    with pytest.raises(StoreError, match="cannot be read"):
        store.selected("gguf")
    with pytest.raises(StoreError, match="cannot be read"):
        store.select(runtime)
    assert file.read_text() == text


def test_removing_deletes_and_leaves_nothing(store, add):
    kept, runtime = add("1.0"), add("2.0")

    store.remove(runtime)

    assert store.runtimes() == (kept,)
    assert not runtime.directory.exists()
    assert list(store.staging.iterdir()) == []
    with pytest.raises(NotFoundError, match="another process"):
        store.remove(runtime)


def test_what_a_link_leads_to_is_never_deleted(store, add, tmp_path):
    """A runtime that somebody moved to a larger disk, an environment that he linked by himself, and a leftover."""
    moved, elsewhere = add("1.0"), tmp_path / "elsewhere"
    for name in ("moved", "own", "left"):
        (elsewhere / name).mkdir(parents=True)
        (elsewhere / name / "file").write_text(name)
    for path in moved.directory.iterdir():
        path.rename(elsewhere / "moved" / path.name)
    moved.directory.rmdir()
    moved.directory.symlink_to(elsewhere / "moved")
    (store.folder / "own").symlink_to(elsewhere / "own")
    (store.staging / "left").symlink_to(elsewhere / "left")

    assert clean_up(store, 0).runtimes == (moved,)
    assert list(store.folder.iterdir()) == list(store.staging.iterdir()) == []
    assert [(elsewhere / name / "file").read_text() for name in ("moved", "own", "left")] == ["moved", "own", "left"]
    assert (elsewhere / "moved" / "manifest.json").exists()


def test_what_is_selected_is_removed_by_force_only(store, add):
    runtime = add()
    store.select(runtime)

    with pytest.raises(InUseError, match="selected for gguf"):
        store.remove(runtime)
    assert store.selected("gguf") == runtime
    store.remove(runtime, force=True)
    assert store.runtimes() == ()
    assert store.selection() == Selection()


def test_publishing_replaces_a_broken_runtime_of_that_name(store, add):
    runtime = add()
    (runtime.directory / MANIFEST).unlink()
    (runtime.directory / "old").write_text("")

    assert add() == runtime
    assert not (runtime.directory / "old").exists()


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_home_is_said(store, add):
    runtime = add()
    store.select(runtime)
    store.home.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="failed at"):
            store.remove(runtime, force=True)
    finally:
        store.home.chmod(0o700)


def test_the_old_shape_of_the_selection_is_read_and_written_anew(store, add):
    runtime = add()
    file = store.home / "selection.json"
    file.write_text(
        json.dumps({"schema_version": 1, "formats": {"gguf": "engine-gone@1"}, "models": {"m": runtime.id}})
    )

    assert store.selection() == Selection({"gguf": "engine-gone@1"}, {"m": runtime.id})
    assert store.select(runtime) == ("gguf",)
    assert json.loads(file.read_text())["schema_version"] == 3
    assert store.selection().previous == {"gguf": ("engine-gone@1",)}


def test_version_2_of_the_selection_is_read_and_written_anew(store, add):
    old, new = add("1.0"), add("2.0")
    lists = {"previous": {"gguf": [old.id]}, "worked": {"gguf": [new.id, old.id]}, "pins": [old.id], "holds": ["x@1"]}
    file = store.home / "selection.json"
    file.write_text(json.dumps({"schema_version": 2, "formats": {"gguf": new.id}, "models": {}, **lists}))

    chosen = store.selection()
    assert (chosen.previous, chosen.worked) == ({"gguf": (old.id,)}, {"gguf": (new.id, old.id)})
    assert (chosen.pins, chosen.holds) == ((old.id,), {"x@1": Hold()})
    store.hold("x@1")  # says nothing new
    assert json.loads(file.read_text())["schema_version"] == 2
    store.hold("x@2", "it leaks")
    assert json.loads(file.read_text())["holds"].keys() == {"x@1", "x@2"}
    assert store.selection().holds["x@1"] == Hold()
    assert store.rollback() == {"gguf": old}


def test_a_hold_says_why_and_since_when(store):
    store.hold("x@1", "it leaks")
    hold = Store(store.home).selection().holds["x@1"]

    assert hold.reason == "it leaks"
    assert timedelta(0) <= datetime.now(UTC) - hold.at < timedelta(minutes=5)
    store.hold("x@1")
    assert store.selection().holds == {"x@1": hold}
    store.hold("x@1", "it crashes")
    assert store.selection().holds["x@1"].reason == "it crashes"


@pytest.mark.parametrize(
    "damage",
    [
        {"holds": {"x@1": "why"}},
        {"holds": {"x@1": {"reason": 3}}},
        {"holds": {"x@1": {"at": "yesterday"}}},
        {"stand_ins": {"m": {"runtime": "x@1"}}},
        {"stand_ins": {"m": {"runtime": "x@1", "instead_of": "y", "format": "gguf", "reason": "r", "at": 3}}},
        {"loaded": {"m": ["x@1"]}},
    ],
    ids=str,
)
def test_a_damaged_part_of_the_selection_is_said(store, damage):
    store.home.mkdir()
    (store.home / "selection.json").write_text(json.dumps({"schema_version": 3, "formats": {}} | damage))

    with pytest.raises(StoreError, match="cannot be read"):
        store.selection()


def test_a_stand_in_serves_its_model_while_what_it_stands_in_for_is_selected(store, add):
    old, new, newest = add("1.0"), add("2.0"), add("3.0")
    store.select(new)
    store.stand_in(old, new, "gguf", "m", "a new quantization")

    store = Store(store.home)
    assert (store.selected("gguf", "m"), store.selected("gguf", "n"), store.selected("gguf")) == (old, new, new)
    assert store.selection().models_of(old.id) == ("m",)
    assert store.selection().stand_in("m").reason == "a new quantization"
    with pytest.raises(InUseError, match=rf"{old.id} is selected for model m"):
        store.remove(old)
    store.select(newest)
    assert store.selected("gguf", "m") == newest
    assert store.selection().models_of(old.id) == ()
    store.select(new)  # which is known not to load it
    assert store.selected("gguf", "m") == old
    store.unselect_model("m")
    assert store.selected("gguf", "m") == new


def test_what_takes_the_place_of_a_stand_in_stands_in_for_what_is_selected(store, add):
    first, selected, second = add("1.0"), add("2.0"), add("3.0")
    store.select(selected)
    store.stand_in(first, selected, "gguf", "m", "a new quantization")

    assert store.stand_in(second, first, "gguf", "m", "a library is gone").instead_of == selected.id

    assert store.selected("gguf", "m") == second
    store.select(first)
    assert store.selected("gguf", "m") == first


@pytest.mark.parametrize("removed", ["1.0", "2.0"])
def test_a_stand_in_goes_with_the_runtimes_it_is_about(store, add, removed):
    old, new = add("1.0"), add("2.0")
    store.select(new)
    store.stand_in(old, new, "gguf", "m", "a new quantization")

    store.remove(store.get(f"engine@{removed}"), force=True)

    assert store.selection().stand_ins == {}


def test_what_is_tried_when_a_model_does_not_load(store, add):
    first, second, third, other = add("1.0"), add("2.0"), add("3.0"), add("4.0", formats=("mlx",), platform="other")
    store.select(first)
    assert store.fallbacks(first, "gguf", "m") == ()
    store.note_loaded(first, "gguf", "m")
    assert store.fallbacks(first, "gguf", "m") == ()  # it loaded this very model
    store.select(second)
    assert store.fallbacks(second, "gguf", "m") == (Fallback(first, for_all=True),)
    assert store.fallbacks(second, "gguf", "unknown") == (Fallback(first, for_all=True),)
    store.note_loaded(second, "gguf", "n")
    assert store.fallbacks(second, "gguf", "m") == (Fallback(first, for_all=False),)
    assert store.fallbacks(second, "gguf", "unknown") == ()
    store.select(third)
    assert store.fallbacks(third, "gguf", "m") == (Fallback(second, for_all=True), Fallback(first, for_all=False))
    assert store.fallbacks(third, "gguf", "n") == (Fallback(second, for_all=True),)
    store.note_loaded(other, "mlx", "m")  # another model of that name took its place
    assert store.fallbacks(third, "gguf", "m") == (Fallback(second, for_all=True),)


def test_what_loaded_a_model_last_is_remembered_of_so_many(store, add, monkeypatch):
    monkeypatch.setattr(selection, "MODELS", 2)
    first, second = add("1.0"), add("2.0")
    for model in ("a", "b"):
        store.note_loaded(first, "gguf", model)
    store.note_loaded(second, "gguf", "a")
    store.note_loaded(second, "gguf", "c")

    assert store.selection().loaded == {"a": second.id, "c": second.id}
    store.remove(second)
    assert store.selection().loaded == {}


def test_a_rollback_returns_to_what_worked(store, add):
    first, never_loaded, third = add("1.0"), add("2.0"), add("3.0")
    for runtime in (first, never_loaded, third):
        store.select(runtime)
    store.note_loaded(first, "gguf")

    assert store.rollback_targets() == {"gguf": first}
    assert store.selected("gguf") == third
    assert store.rollback("gguf") == {"gguf": first}
    assert store.selected("gguf") == first
    with pytest.raises(NotFoundError, match="no earlier selection of gguf is known"):
        store.rollback("gguf")


def test_where_nothing_has_loaded_a_model_a_rollback_returns_to_the_newest_before(store, add):
    first, second, third = add("1.0"), add("2.0"), add("3.0")
    for runtime in (first, second, third):
        store.select(runtime)

    assert store.fallbacks(third, "gguf", "m") == (Fallback(second, for_all=True),)
    assert "is what `paceline runtime rollback` would return gguf to" in store.protection(second)
    assert store.protection(first) is None
    assert store.rollback() == {"gguf": second}
    store.note_loaded(second, "gguf")
    assert store.fallbacks(second, "gguf", "m") == ()
    assert store.rollback() == {"gguf": first}


@pytest.mark.parametrize("why", ["is not installed", "is incomplete", "is held", "is broken"])
def test_what_cannot_be_returned_to_is_named_with_the_reason(store, add, why):
    old, new = add("1.0"), add("2.0")
    store.select(old)
    store.select(new)
    store.note_loaded(old, "gguf")
    assert store.rollback_targets() == {"gguf": old}
    if why == "is not installed":
        shutil.rmtree(old.directory)
    elif why == "is incomplete":
        (old.directory / MANIFEST).unlink()
    elif why == "is held":
        store.hold(old.id)
    elif why == "is broken":
        (old.directory / "env" / "engine.so").unlink()

    with pytest.raises(NotFoundError, match=rf"{old.id} {why}") as told:
        store.rollback()
    assert (f"repair {old.id}" in told.value.help) == (why in ("is incomplete", "is broken"))
    assert store.selected("gguf") == new


def test_each_rollback_goes_one_further_back(store, add):
    runtimes = [add(f"{n}.0") for n in range(1, 4)]
    for runtime in runtimes:
        store.select(runtime)
        store.note_loaded(runtime, "gguf")

    assert store.rollback() == {"gguf": runtimes[1]}
    assert store.rollback() == {"gguf": runtimes[0]}
    assert store.select(runtimes[2]) == ("gguf",)
    assert store.rollback() == {"gguf": runtimes[0]}


def test_a_load_is_noted_once(store, add):
    runtime = add()
    store.note_loaded(runtime, "gguf")
    store.note_loaded(runtime, "gguf", "m")
    before = (store.home / "selection.json").stat().st_mtime_ns

    store.note_loaded(runtime, "gguf")
    Store(store.home).note_loaded(runtime, "gguf", "m")

    assert (store.home / "selection.json").stat().st_mtime_ns == before
    assert store.selection().worked == {"gguf": (runtime.id,)}


def test_a_home_that_cannot_be_written_serves_all_the_same(store, add):
    runtime = add()
    store.select(runtime)
    shutil.rmtree(store.home / "locks")
    (store.home / "locks").write_text("in the way")

    use = store.use(runtime)
    store.note_loaded(runtime, "gguf")
    assert store.selected("gguf") == runtime
    use.release()
    assert store.last_used(runtime) is None
    with pytest.raises(StoreError, match="taking a lock failed at"):
        store.remove(runtime, force=True)


def test_noting_a_load_stops_nobody(store, add):
    runtime = add()
    (store.home / "selection.json").write_text("damaged")

    store.note_loaded(runtime, "gguf")

    assert (store.home / "selection.json").read_text() == "damaged"


def test_a_runtime_for_one_model_is_chosen_and_taken_away(store, add):
    for_all, for_one = add("1.0"), add("2.0")
    store.select(for_all)

    store.select_for_model(for_one, "m")
    assert (store.selected("gguf", "m"), store.selected("gguf", "n")) == (for_one, for_all)
    store.unselect_model("m")
    assert store.selected("gguf", "m") == for_all
    store.unselect("gguf")
    assert store.selected("gguf") is None
    assert store.selection().previous == {"gguf": (for_all.id,)}


def test_what_is_wrong_with_the_selected_runtimes_is_told(store, add):
    whole, broken, gone, other = (add(f"{n}.0") for n in range(1, 5))
    store.select(whole)
    assert store.damage() == {}
    for runtime in (broken, gone):
        store.select_for_model(runtime, runtime.version)
    for runtime in (broken, other):
        (runtime.directory / "env" / "engine.so").unlink()
    (gone.directory / MANIFEST).unlink()

    assert store.damage() == {
        broken.id: ("env/engine.so: No such file or directory",),
        gone.id: ("manifest.json is missing",),
    }


def test_a_broken_runtime_is_not_selected(store, add):
    runtime = add()
    (runtime.directory / "env" / "engine.so").write_text("")

    with pytest.raises(StoreError, match=r"is broken: env/engine\.so has 0 bytes instead of") as caught:
        store.select(runtime)
    assert caught.value.help == f"`paceline runtime repair {runtime.id}`"
    assert store.selected("gguf") is None


def test_the_latest_passes_over_what_is_held_broken_or_pinned(store, add):
    old, good, held, broken = add("1.0"), add("2.0"), add("3.0"), add("4.0")
    add("9.0", platform="other")
    store.select(old)
    store.hold(held.id)
    (broken.directory / "env" / "engine.so").unlink()

    store.pin(old.id)
    assert store.select_latest() == {}
    store.unpin(old.id)
    assert store.select_latest() == {"gguf": good}
    assert store.selected("gguf") == good
    assert store.select_latest() == {}
    store.unhold(held.id)
    assert store.latest() == {"gguf": held}


def test_what_is_held_is_not_selected_by_itself(store, add):
    runtime = add()
    store.hold(runtime.id)

    assert store.select_where_none(runtime) == ()
    assert store.select(runtime) == ("gguf",)


def test_what_is_pinned_is_removed_by_force_only(store, add):
    runtime = add()
    store.pin(runtime.id)
    store.pin(runtime.id)

    with pytest.raises(InUseError, match="is pinned"):
        store.remove(runtime)
    store.remove(runtime, force=True)
    assert store.selection() == Selection()


HOLDER = """
import sys
from pathlib import Path
from paceline.store import Store
store = Store(Path(sys.argv[1]))
use = store.use(store.get(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


def test_what_a_process_uses_stays_until_the_process_is_gone(store, add, store_world):
    runtime = add()
    assert store.last_used(runtime) is None
    command = [sys.executable, "-c", HOLDER, str(store.home), runtime.id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"

        assert store.in_use_by(runtime) == (holder.pid,)
        for change in (
            partial(store.remove, runtime),
            partial(store.remove, runtime, force=True),
            partial(store.remove_unneeded, runtime),
            partial(store_world.add, store),
        ):
            with pytest.raises(InUseError, match=f"{runtime.id} is in use by process {holder.pid}"):
                change()
        holder.kill()
    assert store.in_use_by(runtime) == ()
    assert store.last_used(runtime) is not None
    store.remove(runtime)
    assert store.runtimes() == ()


def test_a_use_ends_by_release_too_and_is_counted_per_use(store, add):
    runtime = add()
    first, second = store.use(runtime), store.use(runtime)

    first.release()
    first.release()
    assert store.in_use_by(runtime) == (os.getpid(),)
    second.release()
    assert store.in_use_by(runtime) == ()
    store.remove(runtime)
    with pytest.raises(NotFoundError):
        store.use(runtime)


def test_publishing_replaces_in_two_steps_where_folders_cannot_be_exchanged(store, add, monkeypatch):
    monkeypatch.setattr("paceline.store.transaction._exchange", lambda a, b: False)
    runtime = add()
    (runtime.directory / "old").write_text("")

    assert add() == runtime
    assert not (runtime.directory / "old").exists()
    assert list(store.staging.iterdir()) == []


def test_what_was_replaced_in_two_steps_never_comes_back(store, add, store_world, monkeypatch):
    """Also when the process ended before it was deleted, and what took its place is removed."""
    monkeypatch.setattr("paceline.store.transaction._exchange", lambda a, b: False)
    runtime, steps = add(), []

    def end_after_the_second_rename(step, path):
        if steps[-1:] == [("rename", runtime.directory)]:
            raise KeyboardInterrupt
        steps.append((step, path))

    with pytest.raises(KeyboardInterrupt), transaction.observed(end_after_the_second_rename):
        add()
    assert next(store.staging.iterdir()).name.startswith("replaced.")
    store.remove(runtime, force=True)
    store.pin("another change")

    assert store.runtimes() == ()


class TestFoldersThatTheSystemDoesNotRename:
    """Those that the image of a container brought, for one; other folders are renamed there as everywhere."""

    @pytest.fixture(autouse=True)
    def refused(self, store_world):
        with transaction.observed(store_world.refuse_to_move_folders):
            yield

    def test_one_is_removed(self, store, add):
        kept, runtime = add("1.0"), add("2.0")
        store.select(runtime)

        store.remove(runtime, force=True)

        assert store.runtimes() == (kept,)
        assert [*store.folder.iterdir()] == [kept.directory]
        assert [*store.staging.iterdir()] == []
        assert store.selection().formats == {}

    def test_one_is_replaced(self, store, add):
        runtime = add()
        (runtime.directory / "old").write_text("")

        assert add() == runtime
        assert health.full(runtime.directory).ok
        assert [*store.staging.iterdir()] == []

    def test_a_generation_of_plugins_is_removed(self, store):
        folder = store.home / "plugins" / "1"
        (folder / "packages").mkdir(parents=True)

        assert store.remove_plugins(1)
        assert not folder.exists()
        assert [*store.staging.iterdir()] == []

    def test_one_is_not_given_up_for_what_cannot_take_its_place(self, store, add, store_world, monkeypatch):
        runtime, staged = add(), store.staging / "made.anew"
        monkeypatch.setattr("paceline.store.transaction.is_one_mount", lambda a, b: False)
        store_world.stage(staged, "1.0")

        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            transaction.publish(staged, runtime.directory)

        assert health.full(runtime.directory).ok
        assert (staged / MANIFEST).exists()

    @pytest.mark.parametrize("removed", [True, False])
    def test_what_is_half_deleted_is_neither_listed_nor_incomplete(self, store, add, store_world, removed):
        runtime = add()

        def end(step, path):
            if step == "delete" and path.name == "engine.so":
                raise KeyboardInterrupt
            store_world.refuse_to_move_folders(step, path)

        with pytest.raises(KeyboardInterrupt), transaction.observed(end):
            store.remove(runtime) if removed else add()

        assert (runtime.directory / "env").exists()
        assert store.runtimes() == store.incomplete() == ()
        store.pin("another change")
        assert store.runtimes() == (() if removed else (runtime,))
        assert [*store.staging.iterdir()] == []


@pytest.mark.skipif(not shutil.which("unshare"), reason="no file system can be mounted")
def test_a_mount_is_another_one_on_the_same_disk_too(store, add):
    runtime = add()
    unshared = ["unshare", "-rm", "sh", "-euc", f'mount --bind "{store.folder}" "{store.folder}"; exec "$@"', "sh"]
    if subprocess.run([*unshared, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    code = (
        "import os, sys; from pathlib import Path; from paceline.store import Store; store = Store(Path(sys.argv[1]));"
        "print(store.folder.stat().st_dev == store.staging.stat().st_dev); store.check_one_mount()"
    )

    done = subprocess.run([*unshared, sys.executable, "-c", code, store.home], capture_output=True, text=True)

    assert done.stdout == "True\n"
    assert "nothing can be installed" in done.stderr
    store.check_one_mount()
    assert store.runtimes() == (runtime,)


@pytest.mark.skipif(not shutil.which("unshare"), reason="no file system can be mounted")
def test_what_lies_in_the_image_of_a_container_is_removed_and_replaced(store, add, tmp_path):
    """On overlayfs itself, whose lower layer has the runtimes."""
    for version in ("1.0", "2.0"):
        add(version)
    (tmp_path / "layers").mkdir()
    inside = f"""
        mount -t tmpfs tmpfs "{tmp_path}/layers"
        cd "{tmp_path}/layers"
        mkdir upper work merged
        mount -t overlay -o lowerdir="{store.home}",upperdir=upper,workdir=work,userxattr overlay merged
        exec "$@"
    """
    unshared = ["unshare", "-rm", "sh", "-euc", inside, "sh"]
    if subprocess.run([*unshared, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    command = [sys.executable, "-c", _ON_LAYERS, str(Path(__file__).parents[1]), f"{tmp_path}/layers/merged"]

    done = subprocess.run([*unshared, *command], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "moved: False\n['engine-linux-cpu@1.0'] True []\n[]\n"
    assert [r.version for r in store.runtimes()] == ["2.0", "1.0"]  # the layer below


_ON_LAYERS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import store_world
from paceline.store import Store, health

store = Store(Path(sys.argv[2]))
try:
    store.get("engine@1.0").directory.rename(store.home / "elsewhere")
    print("moved: True")
except OSError as error:
    print("moved: False")
store.remove(store.get("engine@2.0"))
again = store_world.add(store, "1.0")
print([r.id for r in store.runtimes()], health.full(again.directory).ok, list(store.staging.iterdir()))
store.remove(again)
print([f.name for f in store.folder.iterdir()])
"""


def test_a_runtime_removed_since_it_was_listed_is_said_to_be_gone(tmp_path, store_world):
    store = Store(tmp_path / "home")
    runtime = store_world.add(store, "1.0")
    size = store.size(runtime)
    assert size is not None
    assert size > 0
    assert store.size_of_newest(runtime.name) == size

    store.remove(runtime)

    with pytest.raises(NotFoundError, match=f"{runtime.id} is no longer installed"):
        store.manifest(runtime)
    assert store.size(runtime) is None
    assert store.size_of_newest(runtime.name) is None
