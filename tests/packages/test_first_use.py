"""Packages without published hashes: asked for, recorded when first installed, and nothing else from then on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from paceline.errors import BuildError, InstallError, StoreError, UnpinnedError
from paceline.manager.installation import install, repair
from paceline.packages import first_use
from paceline.store import Store, transaction
from paceline.types import Package

NAME = "tinyengine-1.0.0-py3-none-any.whl"


@pytest.fixture
def page(tiny, file_server, tmp_path, monkeypatch):
    """A wheel page over HTTP that publishes no hashes; returns a function that puts another wheel there."""

    def put(note):
        files = {"tinyengine/__main__.py": tiny.worker, "tinyengine/settings.json": "{}", "tinyengine/note": note}
        tiny.write_wheel(tmp_path / NAME, "tinyengine", files)
        data = (tmp_path / NAME).read_bytes()
        file_server.files[f"/whl/tinyengine/{NAME}"] = data, "application/zip"
        return hashlib.sha256(data).hexdigest()

    other = "tinyengine-1.0.0-cp39-cp39-win_amd64.whl"
    links = "".join(f'<a href="{name}">{name}</a>' for name in (NAME, other))
    file_server.files["/whl/tinyengine/"] = f"<html><body>{links}</body></html>".encode(), "text/html"
    monkeypatch.delenv("PIP_NO_INDEX")
    put.first = put("first")
    return put


@pytest.fixture
def release(tiny, file_server, page):
    whole = tiny.release()
    package = Package("tinyengine", "1.0.0", index=f"{file_server.url}/whl")
    recipe = replace(whole.recipe, packages=(whole.recipe.packages[0], package), build_packages=())
    tiny.offer(replace(whole, recipe=recipe))
    return replace(whole, recipe=recipe)


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


def recorded(store):
    file = first_use.record_file(store.home)
    return [e["sha256"] for e in json.loads(file.read_bytes())["packages"].values()] if file.exists() else []


def test_what_was_first_installed_is_recorded_and_locked(tiny, store, release, page):
    with pytest.raises(UnpinnedError, match="no hashes are published"):
        install(release, store, tiny.engine)
    assert recorded(store) == []

    runtime = install(release, store, tiny.engine, allow_unpinned=True)

    assert recorded(store) == [[page.first]]
    manifest = store.manifest(runtime)
    assert manifest["unpinned"] == ["tinyengine"]
    assert {p["name"]: p["sha256"] for p in manifest["lock"]}["tinyengine"] == [page.first]


def test_it_needs_no_permission_again(tiny, store, release):
    runtime = install(release, store, tiny.engine, allow_unpinned=True)
    store.unselect("tiny")
    store.remove(runtime)

    assert install(release, store, tiny.engine).id == runtime.id


@pytest.mark.parametrize("allowed", [False, True])
def test_another_file_is_refused_with_both_digests(tiny, store, release, page, tmp_path, allowed):
    install(release, store, tiny.engine, allow_unpinned=True, cache=tmp_path / "one")
    second = page("other")
    newer = replace(release, version="2")

    with pytest.raises(InstallError) as caught:
        install(newer, store, tiny.engine, allow_unpinned=allowed, cache=tmp_path / "another")

    assert page.first in caught.value.message
    assert second in caught.value.message
    assert "tinyengine 1.0.0 (" in caught.value.help
    assert str(first_use.record_file(store.home)) in caught.value.help
    assert recorded(store) == [[page.first]]
    assert [r.version for r in store.runtimes()] == ["1.0.0"]


def test_a_repair_takes_no_other_file(tiny, store, release, page, tmp_path):
    runtime = install(release, store, tiny.engine, allow_unpinned=True, cache=tmp_path / "one")
    (note,) = runtime.directory.glob("env/lib/python*/site-packages/tinyengine/note")
    note.unlink()
    second = page("other")

    with pytest.raises(InstallError, match="left as it was") as caught:
        repair(runtime.id, store, tiny.engine, cache=tmp_path / "another")
    assert page.first in caught.value.message
    assert second in caught.value.message

    page("first")
    assert repair(runtime.id, store, tiny.engine, cache=tmp_path / "another").id == runtime.id
    assert note.read_text() == "first"


def test_whoever_is_killed_while_publishing_has_recorded_it(tiny, store, release, page, tmp_path):
    def end(step, path):
        if step == "rename" and path == store.folder / release.id:
            raise KeyboardInterrupt

    with transaction.observed(end), pytest.raises(KeyboardInterrupt):
        install(release, store, tiny.engine, allow_unpinned=True, cache=tmp_path / "one")
    assert recorded(store) == [[page.first]]
    page("other")
    with pytest.raises(InstallError, match=page.first):
        install(release, store, tiny.engine, allow_unpinned=True, cache=tmp_path / "another")


def test_a_record_that_cannot_be_read_hides_no_other_error(tiny, store):
    store.home.mkdir()
    first_use.record_file(store.home).write_text("[" * 100_000)
    whole = tiny.release()
    wrong = tuple(replace(package, sha256=("0" * 64,)) for package in whole.recipe.packages)
    with pytest.raises(BuildError, match=r"(?i)hash mismatch"):
        install(replace(whole, recipe=replace(whole.recipe, packages=wrong)), store, tiny.engine)


def test_what_failed_is_not_recorded(tiny, store, release, file_server):
    del file_server.files[f"/whl/tinyengine/{NAME}"]

    with pytest.raises(InstallError, match=r"tinyengine 1\.0\.0 cannot be fetched from"):
        install(release, store, tiny.engine, allow_unpinned=True)
    assert recorded(store) == []


def test_a_damaged_record_accepts_nothing(tiny, store, release):
    install(release, store, tiny.engine, allow_unpinned=True)
    first_use.record_file(store.home).write_text('{"schema_version": 1, "packages": {"x": {}}}')

    with pytest.raises(StoreError, match="cannot be read"):
        install(replace(release, version="2"), store, tiny.engine, allow_unpinned=True)


def test_the_command_line_shows_and_asks(tiny, release, store):
    assert "needs --allow-unpinned" in tiny.paceline("runtime", "get", "--list").stdout
    assert tiny.paceline("runtime", "get").returncode == 1

    no = tiny.at_a_terminal("n\n", "runtime", "get", PIP_NO_INDEX="")
    assert (no[0], "no hashes are published for tinyengine 1.0.0" in no[1]) == (1, True), no
    assert not store.runtimes()
    yes = tiny.at_a_terminal("y\n", "runtime", "get", PIP_NO_INDEX="")
    assert (yes[0], "Recorded what tinyengine is here" in yes[1]) == (0, True), yes
    assert "needs --allow-unpinned" not in tiny.paceline("runtime", "get", "--list").stdout
