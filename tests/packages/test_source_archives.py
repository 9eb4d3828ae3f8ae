"""Source distributions that mean no good are refused before uv sees them."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tarfile

import pytest

from paceline.errors import ArchiveError
from paceline.packages.archives import Limits
from paceline.packages.source_archives import check_package


@pytest.fixture
def sdist(tmp_path):
    """A function that makes a source distribution of entries: (name, content, fields of its TarInfo)."""

    def make(*entries):
        path = tmp_path / "alpha-1.0.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content, fields in (("alpha-1.0/PKG-INFO", b"Name: alpha\n", {}), *entries):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                for field, value in fields.items():
                    setattr(info, field, value)
                archive.addfile(info, io.BytesIO(content))
        return path

    return make


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("../escaped", {}, "leads elsewhere"),
        ("alpha-1.0/../../escaped", {}, "leads elsewhere"),
        ("/escaped", {}, "absolute path"),
        ("alpha-1.0\\..\\escaped", {}, "backslash"),
        ("alpha-1.0/a", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "outside of it"),
        ("alpha-1.0/a", {"type": tarfile.SYMTYPE, "linkname": "../../escaped"}, "outside of it"),
        ("alpha-1.0/a", {"type": tarfile.LNKTYPE, "linkname": "../escaped"}, "outside of it"),
        ("alpha-1.0/a", {"type": tarfile.SYMTYPE, "linkname": "b/../c"}, "leads down and up again"),
        ("alpha-1.0/a", {"type": tarfile.GNUTYPE_SPARSE}, "something else that no package needs"),
        ("alpha-1.0/a", {"type": tarfile.CHRTYPE}, "device"),
        ("alpha-1.0/a", {"type": tarfile.BLKTYPE}, "device"),
        ("alpha-1.0/a", {"type": tarfile.FIFOTYPE}, "device"),
        ("alpha-1.0/a", {"mode": 0o4755}, r"mode \(4755\)"),
    ],
)
def test_hostile_entries(sdist, name, fields, reason):
    with pytest.raises(ArchiveError, match=f"alpha-1.0.tar.gz is not unpacked: its file .* {reason}"):
        check_package(sdist((name, b"", fields)))


def test_what_is_honest(sdist):
    check_package(
        sdist(
            ("./alpha-1.0/a.py", b"X = 1\n", {"mode": 0o755}),
            ("alpha-1.0/folder", b"", {"type": tarfile.DIRTYPE, "mode": 0o2755}),
            ("alpha-1.0/folder/link", b"", {"type": tarfile.SYMTYPE, "linkname": "../a.py"}),
            ("alpha-1.0/same", b"", {"type": tarfile.LNKTYPE, "linkname": "alpha-1.0/a.py"}),
        )
    )


def test_bombs(sdist):
    path = sdist(("alpha-1.0/zeros", b"\0" * 10_000_000, {}))
    check_package(path)
    with pytest.raises(ArchiveError, match=r"its \d+ bytes unpack to more than"):
        check_package(path, Limits(always=1000))
    with pytest.raises(ArchiveError, match="more than 1 files"):
        check_package(path, Limits(files=1))


def test_links_that_lead_outside_together(sdist):
    """Each of them stays inside by its name; the second one really stands two folders higher."""
    link = {"type": tarfile.SYMTYPE, "linkname": "../.."}
    path = sdist(("alpha-1.0/a/b/s", b"", link), ("alpha-1.0/a/b/s/up", b"", link))
    with pytest.raises(ArchiveError, match=r"it has 'alpha-1\.0/a/b/s' both as a file and as a folder"):
        check_package(path)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([("alpha-1.0/a", b"1", {}), ("./alpha-1.0/a", b"2", {})], "two files named 'alpha-1.0/a'"),
        ([("alpha-1.0/a", b"1", {}), ("alpha-1.0/a/b", b"2", {})], "'alpha-1.0/a' both as a file and as a folder"),
        (
            [("alpha-1.0/a", b"", {"type": tarfile.DIRTYPE}), ("alpha-1.0/a", b"", {})],
            "'alpha-1.0/a' both as a file and as a folder",
        ),
    ],
)
def test_names_that_clash(sdist, entries, reason):
    with pytest.raises(ArchiveError, match=reason):
        check_package(sdist(*entries))
    check_package(sdist(*[("alpha-1.0/a", b"", {"type": tarfile.DIRTYPE})] * 2))


_PEAK = """
import resource, sys
from pathlib import Path
from paceline.errors import ArchiveError
from paceline.packages.source_archives import check_package

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    check_package(Path(sys.argv[1]))
except ArchiveError as error:
    print(error.message)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource module there")
@pytest.mark.parametrize("kind", ["x", "g", "L", "K"])
def test_a_bomb_in_what_describes_a_file(tmp_path, kind):
    """A name of 100 MiB, or fields of it, that are read into memory before anybody asks for their size."""
    size = 100 * 2**20
    path = tmp_path / "alpha-1.0.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        header = tarfile.TarInfo("././@PaxHeader")
        header.type, header.size = kind.encode(), size
        file.write(header.tobuf())
        file.write((b"%d comment=" % size).ljust(2**20, b"a") if kind in "xg" else b"a" * 2**20)
        for _ in range(size // 2**20 - 1):
            file.write(b"a" * 2**20)
        file.write(tarfile.TarInfo("alpha-1.0/PKG-INFO").tobuf() + bytes(1024))
    done = subprocess.run([sys.executable, "-c", _PEAK, path], capture_output=True, text=True, check=True)
    said, grown = done.stdout.splitlines()
    assert said == f"{path.name} is not unpacked: what describes one of its files has more than 1048576 bytes"
    assert int(grown) * (1 if sys.platform == "darwin" else 1024) < size / 4


def test_what_is_said_of_all_files_has_an_end(tmp_path):
    path = tmp_path / "alpha-1.0.tar.gz"
    with gzip.open(path, "wb") as file:
        for n in range(3):
            fields = tarfile.TarInfo.create_pax_global_header({f"n{n}": "a" * 500_000})
            file.write(fields + tarfile.TarInfo(f"alpha-1.0/{n}").tobuf())
    with pytest.raises(ArchiveError, match="what it says of all its files has more than 1048576 bytes"):
        check_package(path)


def test_fields_without_end(tmp_path):
    path = tmp_path / "alpha-1.0.tar.gz"
    header = tarfile.TarInfo("././@PaxHeader")
    header.type = b"x"
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf() * 3000)
    with pytest.raises(ArchiveError, match="is not unpacked: it is damaged"):
        check_package(path)


def test_damaged(sdist):
    path = sdist(("alpha-1.0/a", bytes(range(256)) * 500, {}))
    data = path.read_bytes()
    for broken in (b"", data[: len(data) // 2], data[:60] + bytes(9) + data[69:], b"<html>404</html>"):
        path.write_bytes(broken)
        with pytest.raises(ArchiveError, match="it is damaged"):
            check_package(path)
