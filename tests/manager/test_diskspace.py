from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from paceline.errors import InstallError
from paceline.manager.diskspace import MARGIN_BYTES, check_space, space_for
from paceline.store import Store
from paceline.types import Recipe, Release, Requirements

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


def test_too_little_is_refused_with_the_numbers(store, tmp_path):
    huge = replace(RELEASE, recipe=Recipe(installed_bytes=10**18))

    with pytest.raises(
        InstallError, match=r"engine-linux-cpu@2\.0 needs 1000000000032 MB in .*/home, where \d+ MB"
    ) as e:
        check_space(huge, store, tmp_path)
    assert "prune" in e.value.help
    assert not store.home.exists()
