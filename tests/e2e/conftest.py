"""`paceline serve` as a user starts it, over a real llama.cpp runtime and the sample pair."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

MAIN, DRAFT = "paceline-coder-7m", "paceline-coder-3m"


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen[str]
    models: Path

    def workers(self):
        """The processes that compute, as the operating system knows them."""
        return [p for p in psutil.Process(self.process.pid).children() if "paceline_llama_cpp_worker" in p.cmdline()]


@contextmanager
def _serve(home: Path, models: Path, *options: str):
    env = os.environ | {"PACELINE_HOME": str(home), "PACELINE_MODELS": str(models), "PACELINE_UPDATE": "off"}
    command = [sys.executable, "-m", "paceline", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
    try:
        said = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert url, said
        yield Server(url[0], process, models)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture(scope="session")
def serve():
    """Start a server: `with serve(home, models, *options) as server`."""
    return _serve


@pytest.fixture(scope="session")
def server(llama_cpp_home, tmp_path_factory):
    """One server for every test that leaves it as it was."""
    with _serve(llama_cpp_home, tmp_path_factory.mktemp("models")) as server:
        yield server


@pytest.fixture(scope="session")
def pair():
    return MAIN, DRAFT
