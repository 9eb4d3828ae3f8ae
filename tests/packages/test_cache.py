"""What the download cache holds, what clearing it would free, and what it frees."""

from __future__ import annotations

import os
import threading

import pytest

from paceline.packages import cache
from paceline.packages.builds import build_folder
from paceline.packages.depot import BUNDLES, Depot, PackageFile
from paceline.progress import silent

NAME = "a-1.0-py3-none-any.whl"


def file(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def freed(parts):
    return {part.name: part.freed_bytes for part in parts if part.freed_bytes != 0}


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_of_nothing_nothing_is_freed_and_nothing_is_made(tmp_path):
    assert freed(cache.look(tmp_path / "cache")) == {}
    assert freed(cache.clear(tmp_path / "cache")) == {}
    assert not (tmp_path / "cache").exists()


def test_what_would_be_freed_is_what_is(tmp_path):
    gone = [
        file(tmp_path / "packages" / "files" / ("a" * 64) / f"{NAME}.partial", 100),
        file(tmp_path / "packages" / "seen" / "b.json", 10),
        file(tmp_path / BUNDLES / "packages" / "files" / ("c" * 64) / NAME, 200),
        file(tmp_path / "builds" / "tmpabc" / "wheel" / NAME, 3_000),
        file(tmp_path / "resolution" / "simple-v28" / "index" / "a.rkyv", 40_000),
        file(tmp_path / "bytecode" / "cpython-312" / "ab" / "unused", 500_000),
    ]
    linked = file(tmp_path / "bytecode" / "cpython-312" / "cd" / "used", 6_000_000)
    os.link(linked, tmp_path / "of-a-runtime")
    expected = {
        "fetched packages": 310,
        "broken-off builds": 3_000,
        "byte code": 500_000,
        "index answers": 40_000,
    }

    parts = cache.look(tmp_path)

    assert freed(parts) == expected
    assert all(path.exists() for path in gone)
    byte_code = next(part for part in parts if part.name == "byte code")
    assert (byte_code.size_bytes, byte_code.shared_bytes) == (6_500_000, 6_000_000)
    assert freed(cache.clear(tmp_path)) == expected
    assert not any(path.exists() for path in gone)
    assert linked.exists()
    assert freed(cache.look(tmp_path)) == freed(cache.clear(tmp_path)) == {}


def test_a_file_with_several_names_in_the_cache_is_counted_once(tmp_path):
    for size, name in ((1_000, "own"), (20_000, "linked")):
        first = file(tmp_path / "uv" / "archive-v0" / "a" / name, size)
        other = tmp_path / "uv" / "archive-v0" / "b" / name
        other.parent.mkdir(exist_ok=True)
        os.link(first, other)
    os.link(first, tmp_path / "of-a-runtime")

    (uv,) = (part for part in cache.look(tmp_path) if part.name == cache.UV)

    assert (uv.size_bytes, uv.shared_bytes) == (21_000, 20_000)


def test_no_empty_folder_and_no_lock_is_left(tmp_path):
    for depot in (Depot(tmp_path), Depot(tmp_path / BUNDLES)):
        folder = depot.folder / "files" / ("a" * 64)
        for name in (NAME, f".{NAME}.lock"):
            file(folder / name, 1)
        file(depot.folder / "seen" / "b.json", 1)
    file(tmp_path / "bytecode" / "cpython-312" / "ab" / "unused", 1)

    cache.clear(tmp_path)

    assert files_of(tmp_path) == [BUNDLES, "bundles/packages", "bundles/packages/held.lock", "packages", HELD]


HELD = "packages/held.lock"


def test_uv_cleans_its_own_cache_and_what_that_frees_is_known_then(tmp_path):
    unused = file(tmp_path / "uv" / "archive-v0" / "unreferred" / "file", 2_000_000)
    (uv,) = (part for part in cache.look(tmp_path) if part.name == cache.UV)
    assert (uv.size_bytes, uv.freed_bytes) == (2_000_000, None)

    (uv,) = (part for part in cache.clear(tmp_path) if part.name == cache.UV)

    assert not unused.exists()
    assert (uv.size_bytes < 1_000, uv.freed_bytes > 1_999_000) == (True, True)


class TestIndexLines:
    @pytest.fixture
    def depot(self, tmp_path):
        return Depot(tmp_path)

    @pytest.fixture
    def listed(self, depot):
        """A function: add a line for a file, which is not there; returns the file."""

        def listed(name, letter):
            added = PackageFile(name, letter * 64)
            depot.add([added])
            return added

        return listed

    def lines(self, depot, project):
        page = depot.folder / "simple" / project / "index.html"
        return page.read_text().count("<a ") if page.exists() else None

    def test_of_files_that_nothing_has_go_and_so_do_empty_pages(self, depot, listed, tmp_path):
        listed(NAME, "a")
        listed("b_c-2.0.tar.gz", "b")
        assert depot.index is not None

        cache.clear(tmp_path)

        assert depot.index is None
        assert files_of(depot.folder) == ["held.lock", "lock"]

    def test_of_what_uv_has_unpacked_or_built_stay(self, depot, listed, tmp_path):
        listed(NAME, "a")
        listed("a-1.0.1-py3-none-any.whl", "b")
        listed("b_c-2.0.tar.gz", "c")
        listed("b_c-2.1.tar.gz", "d")
        (tmp_path / "uv" / "wheels-v8" / "index" / "0123456789abcdef" / "a" / "1.0-py3-none-any").mkdir(parents=True)
        (tmp_path / "uv" / "sdists-v11" / "index" / "0123456789abcdef" / "b-c" / "2.0").mkdir(parents=True)

        depot.forget_lost(tmp_path / "uv")

        pages = {project: self.lines(depot, project) for project in ("a", "b-c")}
        assert pages == {"a": 1, "b-c": 1}
        assert "a-1.0-py3" in (depot.folder / "simple" / "a" / "index.html").read_text()
        assert "b_c-2.0.tar.gz" in (depot.folder / "simple" / "b-c" / "index.html").read_text()

    def test_of_files_that_are_here_stay(self, depot, listed, tmp_path):
        file(depot.path(listed(NAME, "a")), 1)
        depot.forget_lost(tmp_path / "uv")
        assert self.lines(depot, "a") == 1


def test_what_uv_took_over_leaves_no_folder(tmp_path):
    depot = Depot(tmp_path)
    taken, other = PackageFile(NAME, "a" * 64), PackageFile("b-1.0-py3-none-any.whl", "b" * 64)
    for each in (taken, other):
        file(depot.path(each), 1)
        file(depot.path(each).with_name(f".{each.name}.lock"), 0)

    depot.drop([taken])

    assert [folder.name for folder in (depot.folder / "files").iterdir()] == [other.sha256]


def test_what_broken_off_builds_left_goes_before_the_next_build(tmp_path):
    left = file(tmp_path / "builds" / "tmpabc" / "wheel" / NAME, 1)
    with build_folder(tmp_path, silent) as folder:
        assert list(folder.iterdir()) == []
        assert not left.exists()


def test_a_build_that_is_under_way_is_waited_for(tmp_path):
    cleaning = threading.Thread(target=cache.clear, args=(tmp_path,))
    with build_folder(tmp_path, silent) as folder:
        (folder / "wheel").write_text("")
        cleaning.start()
        cleaning.join(1)
        assert cleaning.is_alive()
        assert (folder / "wheel").exists()
    cleaning.join(60)
    assert not folder.exists()


def test_a_bundle_that_is_being_made_is_waited_for(tmp_path):
    depot = Depot(tmp_path / BUNDLES)
    part = file(depot.folder / "files" / ("a" * 64) / f"{NAME}.part", 1)
    cleaning = threading.Thread(target=cache.clear, args=(tmp_path,))
    with depot.held(silent):
        cleaning.start()
        cleaning.join(1)
        assert cleaning.is_alive()
        assert part.exists()
    cleaning.join(60)
    assert not part.exists()
