from __future__ import annotations

import base64
import hashlib

import pytest

from paceline.packages.wheel_records import damaged
from paceline.store.digests import Digests


@pytest.fixture
def environment(tmp_path):
    """An environment with a package of two files, one of them without a recorded hash."""
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    info = packages / "some_package-1.0.dist-info"
    info.mkdir(parents=True)
    (packages / "module.py").write_text("A = 1\n")
    (packages / "made_here.py").write_text("")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"A = 1\n").digest()).rstrip(b"=").decode()
    (info / "RECORD").write_text(f"module.py,sha256={digest},6\nmade_here.py,,\n{info.name}/RECORD,,\n")
    return tmp_path


def test_packages_as_recorded_are_whole(environment):
    assert damaged(environment, Digests()) == {}


@pytest.mark.parametrize("text", ["A = 2\n", "", None])
def test_a_changed_or_missing_file_is_named_with_its_package(environment, text):
    (file,) = environment.rglob("module.py")
    file.write_text(text) if text is not None else file.unlink()

    assert damaged(environment, Digests()) == {"some-package": "module.py"}


def test_what_has_no_hash_says_nothing(environment):
    (file,) = environment.rglob("made_here.py")
    file.write_text("B = 2\n")

    assert damaged(environment, Digests()) == {}
