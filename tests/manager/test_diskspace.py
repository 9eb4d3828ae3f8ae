from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from paceline.errors import InstallError
from paceline.manager.diskspace import MARGIN_BYTES, check_space, space_for
from paceline.store import Store
from paceline.types import Package, Recipe, Release, Requirements

RELEASE = Release("engine", "2.0", "linux-cpu", ("gguf",), Requirements(), Recipe(installed_bytes=5_000_000))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def test_the_size_is_the_recipes(store, tmp_path):
    (space,) = space_for(RELEASE, store, tmp_path / "not there" / "cache")  # both on one file system

    assert space.folder == store.home
    assert space.needed_bytes == 5_000_000 + MARGIN_BYTES
    assert space.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)
    check_space(RELEASE, store, tmp_path)


def test_or_that_of_an_installed_version(store, store_world, tmp_path):
    unknown = replace(RELEASE, recipe=Recipe())
    assert space_for(unknown, store, tmp_path) == ()

    runtime = store_world.add(store, "1.0")
    (space,) = space_for(unknown, store, tmp_path)
    assert space.needed_bytes == store.manifest(runtime)["size_bytes"] + MARGIN_BYTES


def test_what_is_fetched_lies_in_the_cache_meanwhile(store, tmp_path):
    fetched = (Package("a", "1", ("a" * 64,), (700_000,)), Package("b", "1", ("b" * 64,), (90_000,)))
    sized = replace(RELEASE, recipe=Recipe(fetched, installed_bytes=5_000_000))
    (space,) = space_for(sized, store, tmp_path / "cache")
    assert space.needed_bytes == 5_790_000 + MARGIN_BYTES

    (space,) = space_for(replace(sized, recipe=Recipe(fetched)), store, tmp_path / "cache")
    assert space.needed_bytes == 790_000 + MARGIN_BYTES


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs another file system")
def test_a_cache_on_another_disk_needs_them_alone(store):
    sized = replace(RELEASE, recipe=Recipe((Package("a", "1", ("a" * 64,), (700_000,)),), installed_bytes=5_000_000))
    needed = {space.folder: space.needed_bytes for space in space_for(sized, store, Path("/dev/shm"))}
    assert needed == {Path("/dev/shm"): 5_700_000 + MARGIN_BYTES, store.home: 5_000_000 + MARGIN_BYTES}


def test_too_little_is_refused_with_the_numbers(store, tmp_path):
    huge = replace(RELEASE, recipe=Recipe(installed_bytes=10**18))

    with pytest.raises(
        InstallError, match=r"engine-linux-cpu@2\.0 needs 1000000000032 MB in .*/home, where \d+ MB"
    ) as e:
        check_space(huge, store, tmp_path)
    assert "prune" in e.value.help
    assert not store.home.exists()
