"""The lock of a moment's change keeps out everybody else, filelock's holders too, and ends with its holder."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from filelock import FileLock, Timeout

from paceline.store.locks import locked

HOLDER = """
import sys
from pathlib import Path
from paceline.store.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def is_free(tmp_path):
    def is_free():
        try:
            with FileLock(tmp_path / "lock", timeout=0):
                return True
        except Timeout:
            return False

    return is_free


def test_it_is_held_as_long_as_the_block_runs_however_that_ends(tmp_path, is_free):
    with locked(tmp_path / "lock"):
        assert not is_free()
    assert is_free()
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    assert is_free()


@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.skipif(sys.platform == "win32", reason="flock is Unix's")
def test_a_file_system_without_such_locks_gets_filelock_s_own(tmp_path, is_free, monkeypatch):
    import fcntl

    def missing(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with locked(tmp_path / "lock"):
        assert not is_free()
    assert is_free()


def test_the_system_takes_it_back_from_a_process_that_is_killed(tmp_path, is_free):
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert not is_free()
        holder.kill()
        with locked(tmp_path / "lock"):
            assert not is_free()
