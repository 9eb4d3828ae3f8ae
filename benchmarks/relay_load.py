"""What the host computes for a streamed token when one or many answers are streamed at a time: its own CPU time.

The worker (beat/) computes next to nothing and says a token to everybody two hundred times a second, so that each token
is a frame of its own, as those of an engine are. CPU time counts no waiting: other programs disturb it little.

    python benchmarks/relay_load.py --json relay.json [--streams 1 4 16] [--tokens 1000]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from contenders import paceline
from machine import ROOT, cpu_s, describe_machine, measured_code
from relay import ROUTES, Connection, line, prepare
from sitting import keep

BEAT = ROOT / "benchmarks" / "beat"


@dataclass(frozen=True)
class Load:
    """CPU seconds of the host's process."""

    kind: str
    streams: int
    repeat: int
    tokens: int
    """Of all answers together."""
    cpu_s: float
    requests_cpu_s: float
    """Of as many answers with one token: what belongs to requests and not to streaming."""


def measure(streams: Sequence[int], tokens: int, repeats: int) -> list[Load]:
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        model, environment = prepare(Path(folder), "paceline_beat", BEAT)
        before = set(psutil.Process().children())
        with paceline(environment=environment) as url:
            (host,) = (p for p in psutil.Process().children() if p not in before)
            for kind in ROUTES:
                _ask(url, kind, model, 1, 1)  # loads the model
                for repeat in range(repeats):
                    for n in streams:
                        _ask(url, kind, model, n, 8)
                        short = _cpu_of(host, url, kind, model, n, 1)
                        long = _cpu_of(host, url, kind, model, n, tokens)
                        loads.append(Load(kind, n, repeat, n * (tokens - 1), long, short))
    return loads


def _cpu_of(host: psutil.Process, url: str, kind: str, model: Path, streams: int, tokens: int) -> float:
    begun = cpu_s(host)
    _ask(url, kind, model, streams, tokens)
    return cpu_s(host) - begun


def _ask(url: str, kind: str, model: Path, streams: int, tokens: int) -> None:
    """So many answers at a time, each of so many tokens."""
    path, field = ROUTES[kind]
    body = {"model": model.stem, **field(line(tokens)), "max_tokens": tokens, "stream": True}

    def one() -> None:
        with Connection(url) as connection:
            connection.stream(path, body)

    threads = [threading.Thread(target=one) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def tables(content: Mapping[str, Any]) -> str:
    """Markdown: a row for each kind of request and number of streams."""
    loads = [Load(**value) for value in content["records"]]
    rows = []
    for kind, streams in dict.fromkeys((load.kind, load.streams) for load in loads):
        mine = [load for load in loads if (load.kind, load.streams) == (kind, streams)]
        each = [(load.cpu_s - load.requests_cpu_s) / load.tokens * 1e6 for load in mine]
        rows.append(f"| {kind} | {streams} | {median(each):.0f} | {min(each):.0f} to {max(each):.0f} | {len(mine)} |\n")
    head = "| request | streams | host's CPU time, µs a token | repeats from to | repeats |\n"
    return f"{head}|{' --- |' * 5}\n{''.join(rows)}"


def read(path: Path) -> dict[str, Any]:
    """What an earlier sitting has measured."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what the host computes for a streamed token.")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    options = parser.parse_args(argv)
    content = {
        "measures": "relay load",
        "machine": describe_machine(),
        "code": measured_code(("relay", "relay_load")),
        "records": [asdict(load) for load in measure(options.streams, options.tokens, options.repeats)],
    }
    if options.json:
        keep(options.json, content)
    print(tables(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
