"""What the host adds: the same worker asked directly over its pipes, and through `paceline serve`.

The worker is the echo engine of the tests, which computes nothing: what a request and a streamed token take is the
way there and back. The host's share is the difference between the two. The client is a bare socket, because a client
library's own work would count as the host's.

    python benchmarks/relay.py [--requests 200] [--tokens 500]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from contenders import paceline
from machine import ROOT, describe_machine
from paceline import python_worker
from paceline.errors import PacelineError
from report import percentile
from worker import Worker

_ECHO = ROOT / "tests" / "thirdparty" / "paceline-echo" / "src"
_WORDS = [f" w{i}" for i in range(50)]


@dataclass(frozen=True)
class Cost:
    """Seconds."""

    first: tuple[float, ...]
    """From the request to its first token, of each answer with one token."""
    per_token: tuple[float, ...]
    """From the first token to the last over the tokens between, of each long answer."""


def direct(model: Path, requests: int, tokens: int) -> Cost:
    """The worker over its pipes, without the host."""
    spec = python_worker(Path(sys.executable), "paceline_echo_worker", _ECHO / "paceline_echo" / "_worker")
    with Worker(spec) as worker:
        worker.call("initialize", protocol=1)
        worker.call("load", role="main", path=str(model))
        first = [worker.generate(line(1), max_tokens=1).arrivals[0] for _ in range(requests)]
        long = [worker.generate(line(tokens), max_tokens=tokens) for _ in range(max(5, requests // 20))]
        return Cost(tuple(first), tuple((a.arrivals[-1] - a.arrivals[0]) / (len(a.tokens) - 1) for a in long))


def relayed(model: Path, environment: Mapping[str, str], requests: int, tokens: int) -> dict[str, Cost]:
    """The same worker behind the API, by kind of request."""
    with paceline(environment=dict(environment)) as url, Connection(url) as connection:
        return {
            kind: _asked(connection, path, {"model": model.stem}, field, requests, tokens)
            for kind, (path, field) in ROUTES.items()
        }


ROUTES: dict[str, tuple[str, Callable[[str], Mapping[str, Any]]]] = {
    "completion": ("/v1/completions", lambda line: {"prompt": line}),
    "chat": ("/v1/chat/completions", lambda line: {"messages": [{"role": "user", "content": line}]}),
}


def _asked(
    connection: Connection,
    path: str,
    body: Mapping[str, Any],
    field: Callable[[str], Mapping[str, Any]],
    requests: int,
    tokens: int,
) -> Cost:
    def arrivals(n: int) -> list[float]:
        return connection.stream(path, {**body, **field(line(n)), "max_tokens": n, "stream": True})

    arrivals(1)  # loads the model
    first = tuple(arrivals(1)[0] for _ in range(requests))
    long = [arrivals(tokens) for _ in range(max(5, requests // 20))]
    return Cost(first, tuple((a[-1] - a[0]) / (tokens - 1) for a in long))


class Connection:
    """One HTTP connection that is kept: a bare socket."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._host = place.netloc
        self._socket = socket.create_connection((place.hostname, place.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def stream(self, path: str, body: Mapping[str, Any]) -> list[float]:
        """When the answer's reads with events came, in seconds from sending the request; the end is not one."""
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        start = time.perf_counter()
        self._socket.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        arrivals, answer = [], b""
        while not answer.endswith(b"0\r\n\r\n"):
            part = self._socket.recv(65536)
            now = time.perf_counter() - start
            answer += part
            if not part or not answer.startswith(b"HTTP/1.1 200 "):
                raise PacelineError(f"{path} failed: {answer[:500].decode(errors='replace')}")
            if b"data: {" in part:
                arrivals.append(now)
        return arrivals

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def line(tokens: int) -> str:
    """A line that the echo engine repeats in so many tokens at least."""
    return "".join(_WORDS[i % len(_WORDS)] for i in range(tokens))


def prepare(folder: Path, plugin: str = "paceline_echo", *roots: Path) -> tuple[Path, dict[str, str]]:
    """A home with the echo runtime and its model; the model and the environment of a host that has the plugin, whose
    module lies in one of the `roots` unless it is the echo engine's own."""
    metadata = folder / "plugin" / f"{plugin}-1.0.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plugin}\nVersion: 1.0.0\n")
    (metadata / "entry_points.txt").write_text(f"[paceline]\necho = {plugin}\n")
    model = folder / "models" / "birds" / "parrot" / "parrot.echo"
    model.parent.mkdir(parents=True)
    facts = {"name": "parrot", "parameters": 2000, "context_length": 100_000, "vocabulary": _WORDS}
    model.write_text(json.dumps(facts))
    path = os.pathsep.join([str(metadata.parent), *map(str, roots), str(_ECHO), os.environ.get("PYTHONPATH", "")])
    environment = {
        "PACELINE_HOME": str(folder / "home"),
        "PACELINE_CACHE": str(folder / "cache"),
        "PACELINE_MODELS": str(folder / "models"),
        "PYTHONPATH": path.rstrip(os.pathsep),
    }
    command = [sys.executable, "-m", "paceline", "runtime", "get", "echo", "--json"]
    subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, check=True)
    return model, environment


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what the host adds to a request and to a streamed token.")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3, help="both ways in turn, so many times")
    options = parser.parse_args(argv)
    for name, value in describe_machine().items():
        print(f"- {name}: {value}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        model, environment = prepare(Path(folder))
        pairs = [
            (
                direct(model, options.requests, options.tokens),
                relayed(model, environment, options.requests, options.tokens),
            )
            for _ in range(options.repeats)
        ]
    print("\n| | worker alone | through the API | the host adds |\n| --- | --- | --- | --- |")
    for kind in ROUTES:
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            alone = median(percentile(d.first, share) for d, _ in pairs) * 1e3
            served = median(percentile(r[kind].first, share) for _, r in pairs) * 1e3
            print(f"| {kind} to first token, {name} | {alone:.2f} ms | {served:.2f} ms | {served - alone:.2f} ms |")
        alone = median(median(d.per_token) for d, _ in pairs) * 1e3
        served = median(median(r[kind].per_token) for _, r in pairs) * 1e3
        print(f"| {kind}, streamed token | {alone:.3f} ms | {served:.3f} ms | {served - alone:.3f} ms |")
    print(f"\ntook {time.monotonic() - started:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
