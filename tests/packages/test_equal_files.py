"""Two versions of a package, installed by the real uv, keep the files that they have in common once."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from paceline.errors import InstallError
from paceline.manager.installation import install, repair
from paceline.packages import equal_files
from paceline.store import Store, health, transaction
from paceline.store.digests import Digests
from paceline.store.manifest import packages_of
from paceline.types import Package, Recipe

LARGE = "tinydep/large.txt"
COMMON = {LARGE: "large" * 300_000, "tinydep/small.txt": "small", "tinydep/__init__.py": "NAME = 1\n"}
WORKER = "tinyengine/__main__.py"


class World:
    """Releases that differ in the version of one package, their runtimes, and a cache."""

    def __init__(self, tiny):
        self.tiny, self.store, self.cache = tiny, Store(tiny.home), tiny.cache
        self._wheel("tinyengine", "1.0.0", {WORKER: tiny.worker, "tinyengine/settings.json": "{}"})

    def release(self, version, **files):
        """The release `version`, with that version of the package: what all have, its own, and `files`."""
        own = {"tinydep/own.txt": version * 20_000, "tinydep/as_long.txt": f"{version} has as many bytes"}
        packages = (
            self._wheel("tinydep", version, {**COMMON, **own, **files}),
            Package("tinyengine", "1.0.0", (self.tiny.hash("tinyengine-1.0.0-py3-none-any.whl"),)),
        )
        return replace(self.tiny.release(version), recipe=Recipe(packages, (), {}, (), 1.0))

    def install(self, version, **files):
        return install(self.release(version, **files), self.store, self.tiny.engine, cache=self.cache)

    def repair(self, runtime):
        return repair(runtime.id, self.store, self.tiny.engine, cache=self.cache)

    def copies(self, name):
        """The paths of a file in uv's cache, one for each version."""
        return sorted(self.cache.glob(f"uv/archive-v*/*/{name}"))

    def _wheel(self, name, version, files):
        path = self.tiny.index / f"{name}-{version}-py3-none-any.whl"
        self.tiny.write_wheel(path, name, files, version)
        return Package(name, version, (self.tiny.hash(path.name),))


@pytest.fixture
def world(tiny):
    return World(tiny)


@pytest.fixture
def apart(world, monkeypatch):
    """Two versions that were installed without sharing; how to share, once more."""
    with monkeypatch.context() as patch:
        patch.setattr(equal_files, "share", lambda *arguments: None)
        first, second = world.install("1.0.0"), world.install("1.1.0")
    assert not in_runtime(second, LARGE).samefile(in_runtime(first, LARGE))

    def share(digests=None):
        environments = [runtime.directory / "env" for runtime in (second, first)]
        equal_files.share(environments[0], environments[1:], world.cache, digests or Digests())

    return first, second, share


def in_runtime(runtime, name):
    (packages,) = packages_of(runtime.directory / "env")
    return packages / name


def write_into(file):
    """Damage a file in place, so that every name of it has the damage."""
    with file.open("r+b") as handle:
        handle.seek(100)
        handle.write(b"?")


def held(*folders):
    """Bytes on the disk of all files below `folders`, each counted once whatever names it has."""
    found = {}
    for folder in folders:
        for where, _, names in os.walk(folder):
            for name in names:
                status = os.lstat(f"{where}/{name}")
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def shared_steps(*at_each):
    """An observer of the pass's own steps, which does `at_each`, and the list of what it saw."""
    seen = []

    def observe(step, path):
        if path.name.startswith(".shared"):
            seen.append(step)
            for happen in at_each:
                happen()

    return observe, seen


def test_a_second_version_adds_what_differs_in_the_runtimes_and_the_cache_together(world):
    first = world.install("1.0.0")
    before = held(world.store.folder, *world.cache.glob("uv/archive-v*"))

    second = world.install("1.1.0")

    known = {entry.get("sha256") for entry in json.loads((first.directory / "files.json").read_text()).values()}
    files = json.loads((second.directory / "files.json").read_text())
    differing = [name for name, entry in files.items() if "sha256" in entry and entry["sha256"] not in known]
    own = sum((second.directory / name).stat().st_blocks * 512 for name in (*differing, "files.json", "manifest.json"))
    added = held(world.store.folder, *world.cache.glob("uv/archive-v*")) - before
    assert own <= added < own + 100_000 < len(COMMON[LARGE])  # the scripts of an environment and two lists are its own
    for name in COMMON:
        assert len({file.stat().st_ino for file in (*world.copies(name), in_runtime(first, name))}) == 1
        assert in_runtime(second, name).samefile(in_runtime(first, name))
    for name in ("tinydep/own.txt", "tinydep/as_long.txt"):
        assert not in_runtime(second, name).samefile(in_runtime(first, name))
    assert health.full(first.directory).ok
    assert health.full(second.directory).ok


def test_a_third_version_is_linked_to_whichever_has_the_file(world):
    first = world.install("1.0.0", **{"tinydep/old.txt": "old" * 5000})
    second = world.install("1.1.0", **{"tinydep/new.txt": "new" * 5000})
    third = world.install("1.2.0", **{"tinydep/old.txt": "old" * 5000, "tinydep/new.txt": "new" * 5000})

    assert in_runtime(third, "tinydep/old.txt").samefile(in_runtime(first, "tinydep/old.txt"))
    assert in_runtime(third, "tinydep/new.txt").samefile(in_runtime(second, "tinydep/new.txt"))
    assert in_runtime(third, LARGE).samefile(in_runtime(first, LARGE))


def test_what_uv_links_by_itself_is_left_alone(world):
    world.install("1.0.0")
    observe, seen = shared_steps()

    with transaction.observed(observe):
        install(
            replace(world.release("1.0.0"), version="1.0.0+again"), world.store, world.tiny.engine, cache=world.cache
        )

    assert seen == []


def test_the_same_version_from_another_wheel_is_shared_too(world):
    first = world.install("1.0.0")
    other = replace(world.release("1.0.0", **{"tinydep/more.txt": "for another processor"}), version="1.0.0+other")

    second = install(other, world.store, world.tiny.engine, cache=world.cache)

    assert in_runtime(second, LARGE).samefile(in_runtime(first, LARGE))
    third = world.install("1.1.0", **{"tinydep/more.txt": "for another processor"})
    assert in_runtime(third, "tinydep/more.txt").samefile(in_runtime(second, "tinydep/more.txt"))


def test_a_damaged_file_does_not_come_into_a_new_runtime(world):
    first = world.install("1.0.0")
    write_into(in_runtime(first, LARGE))

    second = world.install("1.1.0")

    assert health.full(second.directory).ok
    assert in_runtime(second, LARGE).read_text() == COMMON[LARGE]
    assert in_runtime(second, "tinydep/small.txt").samefile(in_runtime(first, "tinydep/small.txt"))
    assert not health.full(first.directory).ok


def test_damage_that_two_runtimes_share_is_mended_in_each_and_they_share_again(world):
    first, second = world.install("1.0.0"), world.install("1.1.0")
    write_into(in_runtime(first, LARGE))
    broken = health.full(second.directory)
    assert broken.problems == (f"{in_runtime(second, LARGE).relative_to(second.directory).as_posix()} was changed",)

    world.repair(first)

    assert health.full(first.directory).ok
    assert health.full(second.directory) == broken
    world.repair(second)
    assert health.full(first.directory).ok
    assert health.full(second.directory).ok
    assert in_runtime(second, LARGE).samefile(in_runtime(first, LARGE))


def test_what_cannot_be_mended_is_left_and_its_neighbour_is_what_it_was(world):
    first, second = world.install("1.0.0"), world.install("1.1.0")
    in_runtime(first, LARGE).unlink()
    write_into(in_runtime(second, "tinydep/own.txt"))
    for wheel in world.tiny.index.glob("tinydep-*"):
        wheel.unlink()

    with pytest.raises(InstallError, match="could not be repaired and is left as it was"):
        world.repair(second)

    assert in_runtime(second, LARGE).read_text() == COMMON[LARGE]
    assert [name.rpartition("/")[2] for name in health.full(second.directory).problems] == ["own.txt was changed"]
    assert [name.rpartition("/")[2] for name in health.full(first.directory).problems] == ["large.txt is missing"]


def test_a_repaired_runtime_shares_again_what_was_fetched_anew(world):
    first, second = world.install("1.0.0"), world.install("1.1.0")
    write_into(in_runtime(second, "tinydep/own.txt"))

    world.repair(second)

    assert health.full(second.directory).ok
    assert in_runtime(second, LARGE).samefile(in_runtime(first, LARGE))


def test_removing_one_leaves_the_other_whole(world):
    first, second = world.install("1.0.0"), world.install("1.1.0")
    world.store.select(second)
    world.store.remove(first)

    assert health.full(second.directory).ok
    assert in_runtime(world.install("1.0.0"), LARGE).samefile(in_runtime(second, LARGE))


@pytest.mark.parametrize("number", range(4))
def test_what_cannot_be_linked_stays_a_copy(apart, number):
    first, second, share = apart
    refusals = itertools.cycle([errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOSPC, errno.EROFS])
    steps = itertools.count()

    def refuse(step, path):
        if path.name.startswith(".shared") and step != "delete" and next(steps) % (number + 1) == number:
            raise OSError(code := next(refusals), os.strerror(code))

    with transaction.observed(refuse):
        share()

    assert next(steps) >= (number + 1) * len(COMMON)
    assert not any(in_runtime(second, name).samefile(in_runtime(first, name)) for name in COMMON)
    assert health.full(second.directory).ok  # and no name of this pass is left there
    assert health.full(first.directory).ok


def test_at_no_step_a_file_is_away_or_another_one(apart, world):
    _, second, share = apart
    expected = {path: path.read_bytes() for name in COMMON for path in (*world.copies(name), in_runtime(second, name))}
    wrong = []
    observe, seen = shared_steps(lambda: wrong.extend(p for p, data in expected.items() if p.read_bytes() != data))

    with transaction.observed(observe):
        share()

    assert seen.count("rename") == 2 * len(COMMON)
    assert seen.count("link") == 2 * len(COMMON) + 2  # two have as many bytes, but others
    assert wrong == []


def test_what_is_linked_has_its_digest_without_being_read_again(apart, monkeypatch):
    _, second, share = apart
    digests, read = Digests(), []
    before = health.describe_files(second.directory, digests)
    share(digests)
    monkeypatch.setitem(Digests.of.__globals__, "_hash", read.append)

    assert health.describe_files(second.directory, digests) == before
    assert read == []


def test_another_mode_is_no_equal_file(apart):
    first, second, share = apart
    in_runtime(first, LARGE).chmod(0o755)

    share()

    assert not in_runtime(second, LARGE).samefile(in_runtime(first, LARGE))
    assert in_runtime(second, "tinydep/small.txt").samefile(in_runtime(first, "tinydep/small.txt"))


def test_what_was_copied_is_left_alone(apart, world):
    first, second, share = apart
    for copy in world.copies("tinydep-1.1.0.dist-info/WHEEL"):
        data = copy.read_bytes()
        copy.unlink()
        copy.write_bytes(data)

    share()

    assert not in_runtime(second, LARGE).samefile(in_runtime(first, LARGE))


def test_while_uv_cleans_its_cache_nothing_is_done_and_nobody_waits(apart, world):
    first, second, share = apart
    with (world.cache / "uv" / ".lock").open("rb+") as cleaning:
        fcntl.flock(cleaning, fcntl.LOCK_EX)
        share()
    assert not in_runtime(second, LARGE).samefile(in_runtime(first, LARGE))

    share()
    assert in_runtime(second, LARGE).samefile(in_runtime(first, LARGE))


@pytest.mark.parametrize("moved", ["home", "cache"])
def test_across_file_systems_nothing_is_linked(world, moved, tmp_path_factory):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == world.tiny.folder.stat().st_dev:
        pytest.skip("there is one file system")
    folder = other / f"{tmp_path_factory.getbasetemp().name}-{os.getpid()}-{moved}"
    try:
        if moved == "home":
            world.store = Store(folder)
        else:
            world.cache = folder
        observe, seen = shared_steps()
        with transaction.observed(observe):
            runtimes = [world.install("1.0.0"), world.install("1.1.0")]

        assert seen == []
        assert all(health.full(runtime.directory).ok for runtime in runtimes)
        assert len({file.stat().st_ino for file in world.copies(LARGE)}) == 2
    finally:
        transaction.delete(folder)
