"""Files get the mode that the user's umask gives, so that the users of a group can share a home; secrets do not."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.store import Store

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX modes")

GROUP, USERS = 64_999, (64_101, 64_102)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def run(tiny):
    """Run `paceline` with a umask."""

    def run(*arguments, umask):
        done = subprocess.run(
            [sys.executable, "-m", "paceline", *arguments],
            env={**os.environ, **tiny.environment()},
            capture_output=True,
            text=True,
            timeout=120,
            umask=umask,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_modes_are_those_of_the_umask_and_secrets_are_the_owners(tiny, run, umask):
    run("runtime", "get", "tiny", umask=umask)
    run("runtime", "hold", "tiny@1.0.0", umask=umask)
    run("tokens", "create", "laptop", umask=umask)
    run("registry", "keys", "new", str(tiny.folder / "keys"), umask=umask)

    written = [*tiny.home.glob("*"), *tiny.home.glob("*/*"), *tiny.home.glob("runtimes/*/*")]
    files = {path.relative_to(tiny.home).as_posix(): mode(path) for path in written if path.is_file()}
    assert files.pop("tokens.json") == 0o600
    assert {mode(key) for key in (tiny.folder / "keys").iterdir()} == {0o600}
    assert {"selection.json", "locks/store.lock", "runtimes/tiny-any-cpu@1.0.0/manifest.json"} <= files.keys()
    assert set(files.values()) == {0o666 & ~umask}
    assert {mode(path) for path in written if path.is_dir()} == {0o777 & ~umask}
    assert mode(tiny.cache / "survey.json") == 0o666 & ~umask


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be two users")
def test_two_users_of_a_group_share_a_home(tmp_path, store_world):
    """Each in a fork that has all it needs in memory: the Python that runs this may be in a third one's folder."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, -1, GROUP)
    home.chmod(0o2775)
    for parent in tmp_path.parents[:-2]:
        parent.chmod(mode(parent) | 0o555)
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", TOGETHER, str(home), str(tmp_path / "before"), Path(store_world.__file__).parent],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    store = Store(home)
    assert [r.id for r in store.runtimes()] == ["engine-linux-cpu@2.0"]
    assert {path.stat().st_uid for path in (home / "runtimes").iterdir()} == {USERS[1]}
    assert store.selection().formats == {"gguf": "engine-linux-cpu@2.0"}


TOGETHER = f"""
import os, sys, traceback
from pathlib import Path
from paceline.store import Store, uses
from paceline.tokens import Permission, Tokens
sys.path.insert(0, sys.argv[3])
import store_world

home = Path(sys.argv[1])
python = home.parent / "python"
python.write_text("")

def made(store, version):
    staged = store.staging / f"made.{{version}}"
    name = store_world.stage(staged, version)
    (staged / "env" / "bin" / "python").unlink()
    (staged / "env" / "bin" / "python").symlink_to(python)
    return store.publish(staged, name)

def first(store):
    with store.installing():
        store.select(made(store, "1.0"))
    store.use(store.get("engine@1.0")).release()
    os.utime(store.home / "uses" / "engine-linux-cpu@1.0" / "last", (4e9, 4e9))  # the clock was ahead
    store.pin("engine-linux-cpu@1.0")
    Tokens(store.home).create("laptop", [Permission.ADMIN])

def second(store):
    before = store.last_used(store.get("engine@1.0"))
    with store.installing():
        new = made(store, "2.0")
    use = store.use(store.get("engine@1.0"))
    assert store.in_use_by(store.get("engine@1.0")) == (os.getpid(),)
    use.release()
    assert store.last_used(store.get("engine@1.0")) > before
    store.select(new)
    store.unpin("engine-linux-cpu@1.0")
    store.hold("engine-linux-cpu@1.0", "it is old")
    store.remove(store.get("engine@1.0"))
    if os.getuid():
        try:
            (store.home / "tokens.json").read_text()
        except PermissionError:
            return
        raise SystemExit("somebody else's tokens could be read")

before = Store(Path(sys.argv[2]))
first(before), second(before)  # whatever is imported late is there now
for user, work in zip({USERS}, (first, second)):
    child = os.fork()
    if not child:
        try:
            os.umask(0o002)
            os.setgroups([])
            os.setgid({GROUP})
            os.setuid(user)
            work(Store(home))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit("it did not work")
"""
