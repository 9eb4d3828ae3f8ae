"""Commands that end with this process, and with them everything that they started, wherever it went."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from paceline import child

# What builds do: a step in a process group of its own (ninja), one in a session of its own (a compiler server), and one
# whose parent is gone. Each says who it is when it runs.
_BUILD = r"""
import os, subprocess, sys, time

SLEEP = "import os, time; os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", SLEEP], process_group=0)
if "together" not in sys.argv:
    subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
if os.fork() == 0:
    subprocess.Popen([sys.executable, "-c", SLEEP], process_group=0)
    os._exit(0)
os.write(1, b"%d\n" % os.getpid())
time.sleep(600)
"""
_HOST = """
import os, sys
from pathlib import Path
from paceline import child

argv = [sys.executable, "-c", sys.argv[1]]
child.run(argv, env=os.environ, cwd=Path.cwd(), on_line=lambda line: print(line, end="", flush=True))
"""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="process groups and sessions are POSIX's")


class Stopped(Exception):
    pass


def build(*arguments):
    return [sys.executable, "-c", _BUILD, *arguments]


def is_alive(pid):
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def run(argv, tmp_path, on_line=None):
    return child.run(argv, env=os.environ, cwd=tmp_path, on_line=on_line)


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Until:
    """Collects the process ids that a build prints; does `then` when there are `count`."""

    def __init__(self, count, then):
        self.pids, self._count, self._then = [], count, then

    def __call__(self, line):
        self.pids.append(int(line))
        if len(self.pids) == self._count:
            self._then()


def stop():
    raise Stopped


def test_gives_every_line_and_the_status(tmp_path):
    lines = []
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(7)"
    assert run([sys.executable, "-c", code], tmp_path, lines.append) == 7
    assert lines == ["out\n", "err\n"]


def test_who_is_interrupted_leaves_nothing_behind(tmp_path):
    heard = Until(4, stop)
    with pytest.raises(Stopped):
        run(build(), tmp_path, heard)
    assert [p for p in heard.pids if is_alive(p)] == []


def test_where_orphans_are_not_adopted_the_session_ends(tmp_path, monkeypatch):
    guard = child._guarded([])
    elsewhere = f"import runpy, sys; sys.platform = 'darwin'; runpy.run_path({guard[-1]!r}, run_name='__main__')"
    monkeypatch.setattr(child, "_guarded", lambda argv: [sys.executable, "-I", "-S", "-c", elsewhere, *argv])
    heard = Until(3, stop)
    with pytest.raises(Stopped):
        run(build("together"), tmp_path, heard)
    assert [p for p in heard.pids if is_alive(p)] == []


def test_a_command_that_is_killed_takes_what_it_started_along(tmp_path):
    others = psutil.Process().children()

    def kill():
        (guard,) = (p for p in psutil.Process().children() if p not in others)
        guard.children()[0].kill()

    heard = Until(4, kill)
    assert run(build(), tmp_path, heard) == 128 + signal.SIGKILL
    assert [p for p in heard.pids if is_alive(p)] == []


def test_a_killed_host_leaves_nothing_behind(tmp_path):
    host = subprocess.Popen([sys.executable, "-c", _HOST, _BUILD], stdout=subprocess.PIPE, cwd=tmp_path)
    assert host.stdout is not None
    pids = [int(host.stdout.readline()) for _ in range(4)]
    host.kill()
    host.wait()
    host.stdout.close()
    until(lambda: not any(map(is_alive, pids)))


def test_what_is_paused_stands_still_and_ends_all_the_same(tmp_path):
    async def work():
        async with child.running(build(), env=os.environ, cwd=tmp_path, grace_s=0.1) as process:
            assert process.stdout is not None
            pids = [int(await process.stdout.readline()) for _ in range(4)]
            child.pause(process.pid)
            until(lambda: {psutil.Process(p).status() for p in pids} == {psutil.STATUS_STOPPED})
            child.resume(process.pid)
            until(lambda: psutil.STATUS_STOPPED not in {psutil.Process(p).status() for p in pids})
            child.pause(process.pid)
        return pids

    assert [p for p in asyncio.run(work()) if is_alive(p)] == []
