from __future__ import annotations

import hashlib
import os

import pytest

from paceline.store.digests import Digests, files_below


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b" / "empty").mkdir(parents=True)
    (tmp_path / "b" / "large").write_bytes(bytes(3 << 20))
    (tmp_path / "b" / "small").write_bytes(b"small")
    (tmp_path / "b" / "again").hardlink_to(tmp_path / "b" / "small")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "nothing").write_bytes(b"")
    return tmp_path


def hashed(folder, digests):
    files = {f"{folder}/{name}": s for name, s in files_below(folder).items() if not (folder / name).is_symlink()}
    return {path.removeprefix(f"{folder}/"): digest for path, digest in digests.of(files).items()}


def test_files_and_links_are_found_in_order_and_links_not_followed(folder):
    assert list(files_below(folder)) == ["a", "b/again", "b/large", "b/small", "nothing"]


@pytest.mark.skipif(os.name == "nt", reason="no named pipes there")
def test_what_is_neither_file_nor_link_is_left_out(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert files_below(tmp_path) == {}


def test_files_of_every_size_have_their_digest(folder):
    contents = {"b/again": b"small", "b/large": bytes(3 << 20), "b/small": b"small", "nothing": b""}

    assert hashed(folder, Digests()) == {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def test_a_file_is_read_once_under_all_its_names_and_again_when_it_was_written(folder, monkeypatch):
    digests, read = Digests(), []
    real = Digests.of.__globals__["_hash"]
    monkeypatch.setitem(Digests.of.__globals__, "_hash", lambda path: read.append(path) or real(path))
    before = hashed(folder, digests)
    assert len(read) == 3

    assert hashed(folder, digests) == before
    assert len(read) == 3

    (folder / "b" / "small").write_bytes(b"other")
    os.utime(folder / "b" / "small", ns=(0, 1))
    after = hashed(folder, digests)
    assert len(read) == 4
    assert after["b/small"] == after["b/again"] == hashlib.sha256(b"other").hexdigest()
