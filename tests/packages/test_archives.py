"""What is refused before it is unpacked, and what uv would do with it."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import zipfile

import pytest
from uv import find_uv_bin

from paceline.errors import ArchiveError
from paceline.packages.archives import Limits, check_zip, wrong_name
from paceline.packages.source_archives import admit
from paceline.packages.wheels import read_wheel


@pytest.fixture
def wheel(tiny, tmp_path):
    """A function that makes a wheel of `alpha` with more entries: (name, content, mode or None)."""

    def make(*entries):
        path = tmp_path / "alpha-1.0.0-py3-none-any.whl"
        tiny.write_wheel(path, "alpha", {"alpha.py": "X = 1\n"})
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            for name, content, mode in entries:
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                if mode is not None:
                    info.create_system, info.external_attr = 3, mode << 16
                archive.writestr(info, content)
        return path

    return make


HOSTILE = {
    "parent": ("../../../escaped", b"x", None),
    "absolute": ("/escaped", b"x", None),
    "backslash": ("..\\escaped", b"x", None),
    "drive": ("C:/escaped", b"x", None),
    "empty part": ("a//escaped", b"x", None),
    "line feed": ("a\nescaped", b"x", None),
    "link": ("escaped", b"/etc/passwd", 0o120777),
    "device": ("escaped", b"", 0o020666),
    "set-user-id": ("escaped", b"#!/bin/sh\n", 0o104755),
    "sticky": ("escaped", b"", 0o101644),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_entries_are_refused(wheel, kind):
    with pytest.raises(ArchiveError, match=r"alpha-1\.0\.0-py3-none-any\.whl is not unpacked: its file '.*escaped'"):
        check_zip(wheel(HOSTILE[kind]))


def test_uv_itself_writes_nothing_outside(wheel, tmp_path):
    """The second wall: what the check keeps from uv, uv keeps inside the environment."""
    path = wheel(
        (f"{'../' * 30}{str(tmp_path)[1:]}/escaped-up", b"x", None),
        (f"{tmp_path}/escaped-from-root", b"x", None),
        ("escaped-link", str(tmp_path).encode(), 0o120777),
        ("escaped-rights", b"#!/bin/sh\n", 0o104755),
    )
    argv = [find_uv_bin(), "pip", "install", "--no-deps", "--offline", "--cache-dir", str(tmp_path / "cache")]
    argv += ["--python", sys.executable, "--target", str(tmp_path / "target"), str(path)]
    done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})

    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("escaped*"))
    link, rights = (tmp_path / "target" / name for name in ("escaped-link", "escaped-rights"))
    assert not link.is_symlink()
    assert link.read_text() == str(tmp_path)
    assert rights.stat().st_mode & 0o7000 == 0


def test_what_is_honest(wheel):
    path = wheel(("alpha_data/", b"", 0o040755), ("alpha_data/run.sh", b"#!/bin/sh\n", 0o100755))
    contents = check_zip(path)
    assert contents.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert contents.names[0] == "alpha.py"
    assert contents.names[-1] == "alpha_data/run.sh"
    with zipfile.ZipFile(path) as archive:
        assert contents.unpacked_bytes == sum(i.file_size for i in archive.infolist())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_clash(wheel):
    with pytest.raises(ArchiveError, match=r"two files named 'alpha\.py'"):
        check_zip(wheel(("alpha.py", b"Y = 2\n", None)))
    with pytest.raises(ArchiveError, match=r"'alpha\.py' both as a file and as a folder"):
        check_zip(wheel(("alpha.py/beta.py", b"", None)))


def test_bombs(wheel):
    path = wheel(("zeros", b"\0" * 10_000_000, None))
    check_zip(path)
    with pytest.raises(ArchiveError, match=r"its \d+ bytes unpack to 100\d+"):
        check_zip(path, Limits(always=1000))
    with pytest.raises(ArchiveError, match="more than 9999"):
        check_zip(path, Limits(unpacked_bytes=9999))
    with pytest.raises(ArchiveError, match="files, more than 3"):
        check_zip(path, Limits(files=3))


def test_a_size_that_is_a_lie(wheel):
    """The directory says 10 bytes; no more than those are inflated, and they have another checksum."""
    path = wheel(("zeros", b"\0" * 10_000_000, None))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 10_000_000), struct.pack("<I", 10)))
    with pytest.raises(ArchiveError, match="it is damaged: Bad CRC-32"):
        check_zip(path, Limits(always=100_000, ratio=1))


def test_files_that_share_their_bytes(wheel):
    """A bomb without a high ratio for any of its files: many entries lead to one content."""
    path = wheel(("kernel", os.urandom(100_000), None), ("second", b"", None))
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        kernel = archive.getinfo("kernel")
    start = data.rindex(b"PK\x01\x02", 0, data.rindex(b"second"))  # the directory's entry of `second`
    data[start + 16 : start + 28] = struct.pack("<III", kernel.CRC, kernel.compress_size, kernel.file_size)
    data[start + 42 : start + 46] = struct.pack("<I", kernel.header_offset)
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="its files lie over one another"):
        check_zip(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>404 Not Found</html>"])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "a.whl").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"a\.whl is not unpacked: it is damaged"):
        check_zip(tmp_path / "a.whl")


def test_a_flipped_bit(wheel):
    path = wheel(("noise", os.urandom(10_000), None))
    data = bytearray(path.read_bytes())
    data[data.index(b"noise") + 500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="it is damaged"):
        check_zip(path)


def test_damage_anywhere_is_said(wheel):
    """Names that are no text any more and files that begin before the archive does, among others."""
    path = wheel(("ü.py", b"Y = 2\n", None))
    data, refused = path.read_bytes(), 0
    for place in range(len(data)):
        for byte in {0, 0xFF, data[place] ^ 1, data[place] ^ 0x80} - {data[place]}:
            path.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
            for read in (check_zip, read_wheel):
                try:
                    read(path)
                except ArchiveError:
                    refused += 1
    assert refused > len(data)


def test_what_was_refused_is_deleted(wheel):
    path = wheel(("ü.py", b"Y = 2\n", None))
    data = path.read_bytes()
    path.write_bytes(data.replace("ü".encode(), b"\xc3\x28"))
    with pytest.raises(ArchiveError, match=r"alpha-1\.0\.0-py3-none-any\.whl is not unpacked: it is damaged: 'utf-8'"):
        admit(path)
    assert not path.exists()


def test_a_version_that_is_none(tmp_path, tiny):
    path = tmp_path / "alpha-1.0.0-py3-none-any.whl"
    tiny.write_wheel(path, "alpha", {"alpha.py": ""})
    with zipfile.ZipFile(path) as archive:
        contents = {info: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in contents.items():
            archive.writestr(info.filename, content.replace(b"Version: 1.0.0\n", b"Version: 1,0.0\n"))
    with pytest.raises(ArchiveError, match=r"its metadata cannot be read: Invalid version: '1,0\.0'"):
        read_wheel(path)


@pytest.mark.parametrize("name", ["a", "a/b.py", "a/", "a..b", "..a/b", ".hidden", "ab:c", "ü/ö.py", "a b"])
def test_names_that_are_fine(name):
    assert wrong_name(name) is None
