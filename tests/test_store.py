from __future__ import annotations

import json
import os

import pytest

from paceline.errors import AmbiguousError, InUseError, NotFoundError, StoreError
from paceline.store import MANIFEST, Selection, Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def add(store):
    """Put a runtime there, as an installation leaves it."""

    def add(version="1.0", formats=("gguf",), platform="linux-cpu", **changes):
        runtime_id = f"engine-{platform}@{version}"
        staged = store.staging / runtime_id
        staged.mkdir(parents=True)
        manifest = {
            "schema_version": 1,
            "engine": "engine",
            "version": version,
            "platform": platform,
            "formats": formats,
            "features": [],
            "size_bytes": 7,
        }
        (staged / MANIFEST).write_text(json.dumps(manifest | changes))
        return store.publish(staged, runtime_id)

    return add


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


def test_a_newer_manifest_does_not_count(store, add):
    with pytest.raises(StoreError):
        add(schema_version=2)
    assert store.runtimes() == ()


def test_a_runtime_is_found_by_query(store, add):
    old, new = add("1.0"), add("2.0")

    assert store.get("engine@1.0.0") == old
    assert store.get(new.id) == new
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
    with pytest.raises(InUseError, match="some models"):
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
