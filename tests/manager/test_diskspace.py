from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from paceline import paths
from paceline.errors import InstallError
from paceline.manager.diskspace import (
    BUILD_TREE,
    CUDA_BUILD_TREE,
    LIBRARY_BYTES,
    LIBRARY_UNPACKS_TO,
    MARGIN_BYTES,
    SOURCE_UNPACKS_TO,
    UNSIZED_CUDA_WHEEL_BYTES,
    UNSIZED_WHEEL_BYTES,
    WHEEL_UNPACKS_TO,
    check_space,
    space_for,
)
from paceline.packages.locked import applies
from paceline.registry import read_registry
from paceline.store import Store
from paceline.types import GpuRequirement, Package, Recipe, Release, Requirements

RELEASE = Release("engine", "2.0", "linux-cpu", ("gguf",), Requirements(), Recipe(installed_bytes=5_000_000))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def test_the_size_is_the_recipes(store, tmp_path):
    (space,) = space_for(RELEASE, store, tmp_path / "not there" / "cache")  # both on one file system

    assert space.folder == store.home
    assert space.needed_bytes == 5_000_000 + MARGIN_BYTES
    assert space.free_bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.5)
    assert not space.estimated
    check_space(RELEASE, store, tmp_path)


def test_the_disks_of_every_shipped_release_are_told(store, tmp_path):
    for release in read_registry(paths.registry_file()):
        (space,) = space_for(release, store, tmp_path)
        sizes = [max(p.size) for p in release.recipe.packages if p.size and applies(p)]
        assert space.needed_bytes > MARGIN_BYTES + 2 * sum(sizes), release.id
        assert space.needed_bytes < 40 * 10**9, release.id


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
    assert (space.needed_bytes, space.estimated) == (5_790_000 + MARGIN_BYTES, False)


def test_a_size_that_nobody_measured_is_estimated_from_the_packages(store, tmp_path):
    small, large = Package("a", "1", ("a" * 64,), (700_000,)), Package("b", "1", ("b" * 64,), (LIBRARY_BYTES,))
    other_machine = replace(large, name="c", marker="sys_platform == 'amiga'")
    unknown = replace(RELEASE, recipe=Recipe((small, large, other_machine)))
    (space,) = space_for(unknown, store, tmp_path)
    installed = 700_000 * WHEEL_UNPACKS_TO + LIBRARY_BYTES * LIBRARY_UNPACKS_TO
    assert space.needed_bytes == 700_000 + LIBRARY_BYTES + installed + MARGIN_BYTES
    assert space.estimated


@pytest.mark.parametrize(
    ("gpu", "taken"), [(None, UNSIZED_WHEEL_BYTES), (GpuRequirement("nvidia"), UNSIZED_CUDA_WHEEL_BYTES)]
)
def test_a_wheel_whose_page_tells_no_size_is_estimated(store, tmp_path, gpu, taken):
    engine = Package("engine", "1", index="https://page.example")
    recipe = Recipe((engine, Package("b", "1", ("b" * 64,), (1000,))))
    (space,) = space_for(replace(RELEASE, requires=Requirements(gpu=gpu), recipe=recipe), store, tmp_path)
    assert space.needed_bytes == taken + taken * LIBRARY_UNPACKS_TO + 1000 + 1000 * WHEEL_UNPACKS_TO + MARGIN_BYTES


def test_a_size_that_the_index_tells_is_taken(store, tmp_path):
    recipe = Recipe((Package("engine", "1", index="https://page.example"),), installed_bytes=5_000_000)
    (guessed,) = space_for(replace(RELEASE, recipe=recipe), store, tmp_path)
    (told,) = space_for(replace(RELEASE, recipe=recipe), store, tmp_path, {"engine": 2000})
    assert (guessed.needed_bytes - told.needed_bytes, guessed.estimated) == (UNSIZED_WHEEL_BYTES - 2000, True)
    assert not told.estimated


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs another file system")
def test_what_a_build_needs_is_counted_where_it_happens(store, monkeypatch, tmp_path):
    source = Package("a", "1", ("a" * 64,), (1_000_000,), source=True)
    tool = Package("cmake", "1", ("c" * 64,), (500_000,))
    built = replace(RELEASE, recipe=Recipe((source, tool), (tool,), installed_bytes=5_000_000))
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    needed = {space.folder: space.needed_bytes for space in space_for(built, store, tmp_path)}
    fetched, unpacked = 1_500_000, 1_000_000 * SOURCE_UNPACKS_TO
    assert needed == {
        store.home: 5_000_000 + fetched + unpacked + MARGIN_BYTES,
        Path("/dev/shm"): 1_000_000 * BUILD_TREE,
    }

    cuda = replace(built, requires=Requirements(gpu=GpuRequirement("nvidia")))
    assert space_for(cuda, store, tmp_path)[1].needed_bytes == 1_000_000 * CUDA_BUILD_TREE

    wheel = replace(built, recipe=Recipe((tool,), (tool,), installed_bytes=5_000_000))
    assert all(space.estimated for space in space_for(built, store, tmp_path))
    (space,) = space_for(wheel, store, tmp_path)
    assert (space.needed_bytes, space.estimated) == (5_500_000 + MARGIN_BYTES, False)


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

    guessed = replace(huge, recipe=Recipe((Package("a", "1", ("a" * 64,), (10**17,)),)))
    with pytest.raises(InstallError, match=r"needs about \d+ MB in"):
        check_space(guessed, store, tmp_path)
