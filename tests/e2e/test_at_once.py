"""Eight processes at once over one home: install, update, select, roll back, remove, clean up, serve; some are killed.

Everything is real: the `paceline` command, packages that uv installs from an index over HTTP, and servers that answer
with the third-party engine's worker, which is one of these packages.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import httpx
import pytest

from paceline.registry import registry_text
from paceline.store import Store, health
from paceline.types import Package, Recipe, Release, Requirements

ECHO = Path(__file__).parents[1] / "thirdparty" / "paceline-echo" / "src"
WORKER = ECHO / "paceline_echo" / "_worker" / "paceline_echo_worker"
LINE = "To be or not to be"
VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "2.0.0")
CITIZENS, ROUNDS = 8, 4
COMMANDS = {
    "get": lambda version: ["get", f"echo@{version}"],
    "update": lambda _: ["update", "--registry-only"],
    "select": lambda version: ["select", f"echo@{version}"],
    "rollback": lambda _: ["rollback"],
    "remove": lambda version: ["remove", f"echo@{version}"],
    "prune": lambda _: ["prune", "--keep", "1"],
}
DECK = ["get", "get", "update", "select", "rollback", "remove", "prune", "serve"]
"""What is done as often as each other; a citizen draws its rounds from all that there is to do."""
FIRST_STEPS = (5, 15, 45)
"""Every other command is killed at one of so many file-system steps; selecting has five, installing has the most."""
TOO_LATE = "is selected|is in use by|is incomplete|is already"
"""What a command may say that fails because others were faster. Exit code 3: there is no such runtime any more."""
LIMIT_S = 240.0

_PLUGIN = """
from pathlib import Path
from paceline import WorkerSpec, hookimpl
from paceline.registry import read_registry
from paceline_echo.engine import EchoEngine
from paceline_echo.format import EchoFormat

PACELINE_API = 1

class Echo(EchoEngine):
    def releases(self):
        return read_registry(Path(__file__).with_name("releases.json"))

    def worker(self, runtime):
        return WorkerSpec((str(runtime.python), "-I", "-B", "-m", "paceline_echo_worker"))

@hookimpl
def paceline_engines():
    return [Echo()]

@hookimpl
def paceline_formats():
    return [EchoFormat()]
"""

_KILLED = """
import os, runpy, signal, sys
from paceline.store import transaction

left = int(sys.argv.pop(1))

def count(step, path):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1

with transaction.observed(count):
    runpy.run_module("paceline", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def environment(tmp_path, file_server, tiny_engine):
    """Of processes that see the echo engine with four releases, a package index, a home, a cache and one model."""
    plugin, models = tmp_path / "plugin", tmp_path / "models" / "birds" / "parrot"
    metadata = plugin / "echoes-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: echoes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[paceline]\necho = echoes\n")
    (plugin / "echoes.py").write_text(_PLUGIN)
    code = {f"{WORKER.name}/{file.name}": file.read_text() for file in WORKER.glob("*.py")}
    wheels = {v: tmp_path / f"echo_worker-{v}-py3-none-any.whl" for v in VERSIONS}
    for version, wheel in wheels.items():
        tiny_engine.write_wheel(wheel, "echo_worker", code, version)
        file_server.add_file(wheel.name, wheel.read_bytes())
    file_server.publish("echo-worker", {wheel.name: "2030-01-01" for wheel in wheels.values()})
    needs = Requirements(python=">=3.11")
    recipes = {v: Recipe((Package("echo-worker", v, (file_server.sha256(w.name),)),)) for v, w in wheels.items()}
    releases = [Release("echo", v, "any", ("echo",), needs, recipes[v], features=("generate",)) for v in VERSIONS]
    (plugin / "releases.json").write_text(registry_text(releases))
    models.mkdir(parents=True)
    words = re.findall(r" ?\w+", LINE)
    parrot = {"name": "Parrot", "parameters": 2000, "context_length": 8192, "vocabulary": words}
    (models / "parrot.echo").write_text(json.dumps(parrot))
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))},
        "PACELINE_HOME": str(tmp_path / "home"),
        "PACELINE_CACHE": str(tmp_path / "cache"),
        "PACELINE_MODELS": str(models.parents[1]),
        "PACELINE_PLUGINS": "echo",
        "PACELINE_UPDATE": "off",
        "PYTHONPATH": os.pathsep.join([str(plugin), str(ECHO)]),
        "UV_DEFAULT_INDEX": file_server.index,
        "UV_HTTP_RETRIES": "0",
        "COLUMNS": "400",
    }


def paceline(environment, *arguments, killed_at=None):
    """Run a command; `killed_at`: the file-system step at which it ends itself by SIGKILL."""
    program = ["-m", "paceline"] if killed_at is None else ["-c", _KILLED, str(killed_at)]
    command = [sys.executable, *program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def serve(environment, end):
    """Have a server start, load, answer and end by the signal `end`; returns its process id.

    Raises AssertionError where it does not answer what it should.
    """
    command = [sys.executable, "-m", "paceline", "serve", "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as server:
        try:
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address, server.stderr.read()
            asked = {"model": "parrot", "prompt": LINE, "max_tokens": 64}
            answer = httpx.post(f"{address[0]}/v1/completions", json=asked, timeout=60)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"] == LINE
        finally:
            server.send_signal(end)
        log = server.communicate(timeout=60)[1]
    assert server.returncode == -end, log
    assert "does not load" not in log
    return server.pid


def is_served(store):
    """Whether there is what is selected, or another was selected meanwhile."""
    chosen = store.selection().formats.get("echo")
    return chosen is not None and (store.find(chosen) is not None or store.selection().formats.get("echo") != chosen)


def citizen(environment, chance, deck):
    """One thing after the other; what should not have happened."""
    wrong, killed, store = [], 0, Store(Path(environment["PACELINE_HOME"]))
    for what in deck:
        if not is_served(store):
            wrong.append((what, "nothing is selected any more"))
        if what == "serve":
            try:
                pid = serve(environment, chance.choice([signal.SIGTERM, signal.SIGKILL]))
                assert not [r.id for r in store.runtimes() if pid in store.in_use_by(r)], "a dead server uses a runtime"
            except (AssertionError, httpx.HTTPError) as error:
                wrong.append((what, repr(error)))
            continue
        arguments = ["runtime", *COMMANDS[what](chance.choice(VERSIONS))]
        killed_at = chance.randrange(chance.choice(FIRST_STEPS)) if chance.random() < 0.5 else None
        done = paceline(environment, *arguments, killed_at=killed_at)
        if killed_at is not None and done.returncode == -signal.SIGKILL:
            killed += 1
        elif done.returncode not in (0, 3) and not re.search(TOO_LATE, done.stderr):
            wrong.append((arguments, done.returncode, done.stdout + done.stderr))
    return wrong, killed


def test_eight_processes_at_once_serve_and_change_the_runtimes(environment):
    assert paceline(environment, "runtime", "get", "echo@1.0.0").returncode == 0
    seed = random.randrange(1 << 30)
    deck = DECK * (CITIZENS * ROUNDS // len(DECK))
    random.Random(seed).shuffle(deck)
    with ThreadPoolExecutor(CITIZENS) as pool:
        at_once = [
            pool.submit(citizen, environment, random.Random(seed + n), deck[n::CITIZENS]) for n in range(CITIZENS)
        ]
        assert not wait(at_once, LIMIT_S).not_done, f"seed {seed}: somebody waits for ever"
    found = [each.result() for each in at_once]

    assert [problem for wrong, _ in found for problem in wrong] == [], f"seed {seed}"
    assert sum(killed for _, killed in found) > 0, f"seed {seed}: nobody was killed on the way"
    # The next one heals, and what serves is whole and works.
    pid = serve(environment, signal.SIGKILL)
    store = Store(Path(environment["PACELINE_HOME"]))
    assert paceline(environment, "runtime", "prune", "--keep", str(len(VERSIONS))).returncode == 0
    assert list(store.staging.iterdir()) == []
    assert store.incomplete() == ()
    assert all(health.full(runtime.directory).ok for runtime in store.runtimes())
    chosen = store.selection()
    assert not chosen.stand_ins  # nothing that was selected did not load
    assert all(hold.until_selected for hold in chosen.holds.values())  # by a rollback
    # The locks that the killed ones left keep nobody away.
    assert any(file.name.startswith(f"{pid}.") for file in store.ended_uses())
    for runtime in store.runtimes():
        assert paceline(environment, "runtime", "remove", "--force", runtime.id).returncode == 0
    assert store.runtimes() == ()
