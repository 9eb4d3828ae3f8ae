"""Whatever happens to an operation at whichever of its steps: the selected runtime works and the next one heals."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.store import Store, health

SURVIVOR = Path(__file__).with_name("survivor.py")
QUICK = ["download", "take from a bundle", "select", "rollback", "give back", "stand in", "remove", "remove in place"]
QUICK += ["prune"]
LONG = ["install", "share files", "repair", "repair in two renames", "repair in place", "update"]
LONG += ["install a plugin", "remove a plugin"]
PACKAGES = "install packages"
FIFTH = 5
COLUMNS = ("operation", "steps", "kills", "errors", "full disks")
SAID = {
    row[0]: dict(zip(COLUMNS, row, strict=True))
    for line in (Path(__file__).parents[2] / "docs" / "reliability.md").read_text().splitlines()
    if len(row := [cell.strip() for cell in line.strip("| \n").split(" | ")]) == len(COLUMNS)
}
"""What docs/reliability.md says of each operation: how many steps it has, how often it was broken off in each way."""


def survive(folder, mode, operation, prefix=(), stride=1):
    """Break `operation` off at every `stride`-th of its steps; what came of it."""
    command = [*prefix, sys.executable, str(SURVIVOR), str(folder), mode, operation, str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
@pytest.mark.parametrize("operation", [*QUICK, *LONG, PACKAGES])
def test_a_kill_at_each_step_is_survived(tmp_path, operation):
    result = survive(tmp_path / "disk", "kill", operation)

    assert result["problems"] == []
    assert result["statuses"] == {"9": result["steps"], "0": 1}  # killed at every step, and once at none
    assert SAID[operation]["steps"] == SAID[operation]["kills"] == str(result["steps"])


@pytest.mark.skipif(os.name == "nt", reason="no fork there")
def test_errors_while_packages_are_installed_are_survived(tmp_path):
    """At every fifth step, because each run starts uv several times; no room, a failing disk and no right in turn."""
    result = survive(tmp_path / "disk", "errors in turn", PACKAGES, stride=FIFTH)

    assert result["problems"] == []
    assert SAID[PACKAGES]["errors"] == str(result["broken_off"])
    assert result["statuses"].get(str(10 << 8), 0) > 0


@pytest.mark.skipif(os.name == "nt", reason="no fork there")
@pytest.mark.parametrize("operation", [*QUICK, *LONG])
def test_errors_at_each_step_are_survived(tmp_path, operation):
    result = survive(tmp_path / "disk", "each error" if operation in QUICK else "errors in turn", operation)

    assert result["problems"] == []
    assert SAID[operation]["steps"] == str(result["steps"])
    assert SAID[operation]["errors"] == str(result["broken_off"])
    assert result["statuses"].get(str(10 << 8), 0) > 0


@pytest.mark.skipif(not shutil.which("unshare"), reason="no file system can be mounted")
@pytest.mark.parametrize("operation", [*QUICK, *LONG, PACKAGES])
def test_a_disk_that_is_full_at_each_step_is_survived(tmp_path, operation):
    folder = tmp_path / "disk"
    folder.mkdir()
    inside = ["unshare", "-rm", "sh", "-euc", f'mount -t tmpfs -o size=48m tmpfs "{folder}"; exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted")

    result = survive(folder, "full", operation, inside, FIFTH if operation == PACKAGES else 1)

    assert result["problems"] == []
    assert SAID[operation]["full disks"] == str(result["broken_off"])
    refused = result["statuses"].get(str(10 << 8), 0)
    assert refused == 0 if operation == "prune" else refused > 0  # clean-up is what makes room again


_CITIZEN = """
import os, random, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import store_world
from paceline.manager.cleanup import clean_up
from paceline.errors import InUseError, NotFoundError, StoreError
from paceline.store import Store

store, chance = Store(Path(sys.argv[2])), random.Random(int(sys.argv[3]))
for _ in range(int(sys.argv[4])):
    version = f"{chance.randrange(1, 5)}.0"
    runtime = store.find(f"engine-linux-cpu@{version}")
    what = chance.choice(["add", "select", "remove", "rollback", "use", "pin", "unpin", "note", "prune", "read"])
    try:
        if what == "add" and runtime is None:
            staged = store.staging / f"made.{os.getpid()}.{version}"
            with store.installing():
                if store.find(f"engine-linux-cpu@{version}") is None:
                    store.publish(staged, store_world.stage(staged, version))
        elif what == "rollback":
            store.rollback()
        elif what == "prune":
            clean_up(store, 1)
        elif what == "read":
            store.selected("gguf"), store.runtimes()
        elif runtime is not None:
            if what == "use":
                store.use(runtime).release()
            else:
                {"select": store.select, "remove": store.remove, "pin": lambda r: store.pin(r.id),
                 "unpin": lambda r: store.unpin(r.id), "note": lambda r: store.note_loaded(r, "gguf")}.get(
                    what, lambda r: None)(runtime)
    except (InUseError, NotFoundError):
        pass
    except StoreError as error:
        if "is incomplete" not in error.message:  # it was removed between looking and selecting
            raise
    chosen = store.selection().formats.get("gguf")
    assert chosen is None or store.find(chosen) or store.selection().formats.get("gguf") != chosen, chosen
"""


def test_eight_processes_at_once_corrupt_nothing(tmp_path, store_world):
    store = Store(tmp_path / "home")
    store.select(store_world.add(store, "1.0"))
    seed, rounds = random.randrange(1 << 30), 25
    citizens = [
        subprocess.Popen(
            [sys.executable, "-c", _CITIZEN, str(SURVIVOR.parents[1]), str(store.home), str(seed + n), str(rounds)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(8)
    ]
    ends = [(citizen.communicate(timeout=300)[1], citizen.returncode) for citizen in citizens]

    assert [status for _, status in ends] == [0] * 8, f"seed {seed}: {[text for text, _ in ends if text]}"
    with store.installing():
        assert list(store.staging.iterdir()) == []
    assert store.incomplete() == ()
    assert all(health.full(runtime.directory).ok for runtime in store.runtimes())
    assert store.selected("gguf") is not None
