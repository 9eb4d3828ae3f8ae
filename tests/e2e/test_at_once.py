"""Eight processes at once over one home: two servers that answer, and six that install, update, select, roll back and
remove what the servers generate with. Everything is real, with the third-party engine's worker."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from paceline.registry import registry_text
from paceline.store import Store, health
from paceline.types import Recipe, Release, Requirements

ECHO = Path(__file__).parents[1] / "thirdparty" / "paceline-echo" / "src"
LINE = "To be or not to be"
VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "2.0.0")
ROUNDS = 4
COMMANDS = {
    "get": lambda version: ["get", f"echo@{version}"],
    "update": lambda _: ["update", "--registry-only"],
    "select": lambda version: ["select", f"echo@{version}"],
    "rollback": lambda _: ["rollback"],
    "remove": lambda version: ["remove", f"echo@{version}"],
    "prune": lambda _: ["prune", "--keep", "2"],
}
TOO_LATE = "is selected|is in use by|is incomplete|is already"
"""What a command may say that fails because others were faster. Exit code 3: there is no such runtime any more."""

_PLUGIN = """
from pathlib import Path
from paceline import hookimpl
from paceline.registry import read_registry
from paceline_echo.engine import EchoEngine
from paceline_echo.format import EchoFormat

PACELINE_API = 1

class Echo(EchoEngine):
    def releases(self):
        return read_registry(Path(__file__).with_name("releases.json"))

@hookimpl
def paceline_engines():
    return [Echo()]

@hookimpl
def paceline_formats():
    return [EchoFormat()]
"""


@pytest.fixture
def environment(tmp_path):
    """Of processes that see the echo engine with four releases, a home, a cache and one model."""
    plugin, models = tmp_path / "plugin", tmp_path / "models" / "birds" / "parrot"
    metadata = plugin / "echoes-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: echoes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[paceline]\necho = echoes\n")
    (plugin / "echoes.py").write_text(_PLUGIN)
    needs = Requirements(python=">=3.11")
    releases = [Release("echo", v, "any", ("echo",), needs, Recipe(), features=("generate",)) for v in VERSIONS]
    (plugin / "releases.json").write_text(registry_text(releases))
    models.mkdir(parents=True)
    words = re.findall(r" ?\w+", LINE)
    parrot = {"name": "Parrot", "parameters": 2000, "context_length": 8192, "vocabulary": words}
    (models / "parrot.echo").write_text(json.dumps(parrot))
    return {
        **os.environ,
        "PACELINE_HOME": str(tmp_path / "home"),
        "PACELINE_CACHE": str(tmp_path / "cache"),
        "PACELINE_MODELS": str(models.parents[1]),
        "PACELINE_PLUGINS": "echo",
        "PACELINE_UPDATE": "off",
        "PYTHONPATH": os.pathsep.join([str(plugin), str(ECHO)]),
        "COLUMNS": "400",
    }


def paceline(environment, *arguments):
    command = [sys.executable, "-m", "paceline", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def servers(environment, tmp_path):
    """The addresses of two servers of the same home, and what they log."""
    assert paceline(environment, "runtime", "get", "echo@1.0.0").returncode == 0
    started, found = [], []
    for n in range(2):
        log = tmp_path / f"serve-{n}.log"
        with log.open("w") as stderr:
            command = [sys.executable, "-m", "paceline", "serve", "--port", "0"]
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        started.append(process)
        address = re.search(r"http://\S+", process.stdout.readline())
        assert address, log.read_text()
        found.append((address[0], log))
    yield found
    for process in started:
        process.terminate()
    statuses = [process.wait(60) for process in started]
    for process in started:
        process.stdout.close()
    assert statuses == [-signal.SIGTERM] * 2


def citizen(environment, chance):
    """Random commands, one after the other; what none of them may say."""
    wrong = []
    for _ in range(ROUNDS):
        arguments = ["runtime", *COMMANDS[chance.choice(list(COMMANDS))](chance.choice(VERSIONS))]
        done = paceline(environment, *arguments)
        if done.returncode not in (0, 3) and not re.search(TOO_LATE, done.stderr):
            wrong.append((arguments, done.returncode, done.stdout + done.stderr))
    return wrong


def ask(url, stop):
    """Load, generate, unload, again and again; every answer that is another than it should be."""
    wrong, answers = [], 0
    with httpx.Client(base_url=url, timeout=60) as http:
        while not stop():
            answer = http.post("/v1/completions", json={"model": "parrot", "prompt": LINE, "max_tokens": 64})
            answers += 1
            if answer.status_code != 200 or answer.json()["choices"][0]["text"] != LINE:
                wrong.append(answer.text)
            http.post("/api/v1/models/unload", json={"instance_id": "parrot"})
    return wrong, answers


def test_eight_processes_at_once_serve_and_change_the_runtimes(environment, servers):
    seed = random.randrange(1 << 30)
    with ThreadPoolExecutor(8) as pool:
        changing = [pool.submit(citizen, environment, random.Random(seed + n)) for n in range(6)]
        asking = [pool.submit(ask, url, lambda: all(f.done() for f in changing)) for url, _ in servers]
        found = [problem for each in changing for problem in each.result(300)]
        answered = [each.result(60) for each in asking]

    assert found == [], f"seed {seed}"
    for (wrong, answers), (_, log) in zip(answered, servers, strict=True):
        assert (wrong, answers > 0) == ([], True), f"seed {seed}: {log.read_text()}"
    store = Store(Path(environment["PACELINE_HOME"]))
    with store.installing():
        assert list(store.staging.iterdir()) == []
    assert store.incomplete() == ()
    assert all(health.full(runtime.directory).ok for runtime in store.runtimes())
    assert store.selected("echo") is not None
