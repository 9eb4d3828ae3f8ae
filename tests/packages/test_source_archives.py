"""Source distributions that mean no good are refused before uv sees them."""

from __future__ import annotations

import io
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


def test_damaged(sdist):
    path = sdist(("alpha-1.0/a", bytes(range(256)) * 500, {}))
    data = path.read_bytes()
    for broken in (b"", data[: len(data) // 2], data[:60] + bytes(9) + data[69:], b"<html>404</html>"):
        path.write_bytes(broken)
        with pytest.raises(ArchiveError, match="it is damaged"):
            check_package(path)
