"""What more work costs, Paceline beside llama-server: streams, tokens of context, size of the vocabulary.

    python benchmarks/growth.py --json growth.json                  everything
    python benchmarks/growth.py --axes context --values 512 2048 8192 --quantizations Q8_0 F16      long prompts
    python benchmarks/growth.py --axes streams --budget 10 --json growth.json       what fits; again: goes on

Streams and contexts are those of the heavy pair, vocabularies those of models with random weights. Each point starts
each server anew, with the same context on both, and every repeat begins with another server.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import peer
from client import Run, ask_all
from contenders import LLAMA_SERVER, PACELINE, Contender, contenders, server_of
from growth_models import long_pair, vocabulary_pair
from heavy_pair import QUANTIZATIONS, sample_main
from machine import OtherWork, describe_machine, measured_code, wait_for_quiet
from paceline.errors import PacelineError
from prompts import CODE, chat_prompt
from report import percentile
from sitting import end_cleanly, gone_on, in_minutes, keep, turned
from worker import Worker, selected_runtime, worker_spec

ASKED_BY = ("client", "contenders", "enlarge", "growth", "growth_models", "heavy_pair", "peer", "prompts", "servers")
"""The modules whose change means other figures."""

_ROOM = 512
"""Tokens of context beside the prompt: for the answer, and for prompts that are tokenized again a little longer."""


@dataclass(frozen=True)
class Axis:
    """What grows."""

    values: tuple[int, ...]
    what: str
    """A value, in words."""
    contenders: tuple[str, ...]
    max_tokens: int
    temperature: float


_DRAFTING = (f"{PACELINE}+auto", f"{PACELINE}+n3", f"{LLAMA_SERVER}+n3")
AXES = {
    "context": Axis((512, 1024, 2048, 4096, 8192), "prompt of {} tokens", (PACELINE, LLAMA_SERVER), 24, 0.0),
    "streams": Axis((1, 2, 4, 8, 16), "{} at a time", (PACELINE, LLAMA_SERVER, *_DRAFTING), 48, 0.0),
    # At a temperature the whole vocabulary goes through the sampler; drafts of noise are refused and cost all the same.
    "vocabulary": Axis((4096, 32_000, 75_000, 150_000), "{} tokens", (PACELINE, LLAMA_SERVER, *_DRAFTING[1:]), 48, 0.8),
}


@dataclass(frozen=True, order=True)
class Point:
    """One value of one axis."""

    axis: str
    quantization: str
    value: int


@dataclass(frozen=True)
class Taken:
    """One run of one contender at one point."""

    point: Point
    contender: str
    repeat: int
    run: Run
    other_cores: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Taken:
        run = Run.from_json(value["run"])
        return cls(Point(**value["point"]), value["contender"], value["repeat"], run, value["other_cores"])


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what more streams, longer prompts and larger words cost.")
    parser.add_argument("--axes", nargs="+", choices=[*AXES], default=[*AXES])
    parser.add_argument("--values", nargs="+", type=int, help="of one axis")
    parser.add_argument("--quantizations", nargs="+", choices=[*QUANTIZATIONS], default=["Q8_0"], help="not of words")
    parser.add_argument("--contenders", nargs="+", help="Paceline and llama-server, as run.py names them")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="begin no point later")
    parser.add_argument("--prompts", type=int, default=2, help="at least one for each stream; long ones: one")
    parser.add_argument("--warm-up", type=int, default=24, help="tokens that a new server generates before it counts")
    parser.add_argument("--learning", type=int, default=256, help="as many where Paceline learns how far to draft")
    parser.add_argument("--noise", type=float, default=0.1, help="cores that others may keep busy during a run")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for such quiet before each run")
    parser.add_argument("--json", type=Path, help="keep every single figure in this file, and go on where it ends")
    parser.add_argument("--tables", nargs="+", type=Path, metavar="JSON", help="measure nothing, read earlier figures")
    options = parser.parse_args(argv)
    if options.values and len(options.axes) != 1:
        parser.error("--values are those of one axis: name it with --axes")
    return options


def points(options: argparse.Namespace) -> Iterator[Point]:
    for name in options.axes:
        # Models of random weights are written in 16 bits only.
        quantizations = ["F16"] if name == "vocabulary" else options.quantizations
        values = options.values or AXES[name].values
        yield from (Point(name, quantization, value) for quantization in quantizations for value in values)


def measure(options: argparse.Namespace) -> list[Taken]:
    """What the options ask for and the file does not hold yet, until the budget is spent."""
    started = time.monotonic()
    head, earlier = gone_on(options.json, _head(options))
    taken = [Taken.from_json(value) for value in earlier.get("records", [])]
    known = {(t.point, t.repeat) for t in taken}
    order = [(repeat, point) for repeat in range(options.repeats) for point in points(options)]
    left = [(repeat, point) for repeat, point in order if (point, repeat) not in known]
    while left:
        repeat, point = left.pop(0)
        spent = time.monotonic() - started
        if options.budget is not None and spent > 60 * options.budget:
            print(f"{len(left) + 1} of {len(order)} points are left; the budget is spent", file=sys.stderr)
            break
        field = contenders(options.contenders or AXES[point.axis].contenders)
        for contender in turned(field, repeat):
            taken.append(_taken(point, contender, repeat, options))
            run = taken[-1].run
            said = f"{run.tokens_per_second:.2f} tokens/s, first token {1e3 * first_token(run):.0f} ms"
            print(f"{point}, repeat {repeat}, {contender.name}: {said}", file=sys.stderr, flush=True)
        took = in_minutes(time.monotonic() - started - spent)
        print(f"{len(order) - len(left)} of {len(order)} points; this one took {took}", file=sys.stderr)
        if options.json:
            keep(options.json, {**head, "records": [asdict(t) for t in taken]})
    return taken


def _head(options: argparse.Namespace) -> dict[str, Any]:
    """What all figures of one file have in common."""
    asked = {name: getattr(options, name) for name in ("prompts", "warm_up", "learning", "contenders")}
    return {
        "measures": "growth",
        "machine": describe_machine(),
        "code": measured_code(ASKED_BY),
        "peer": peer.version(),
        "measured_with": asked,
    }


def read(path: Path) -> list[Taken]:
    """What an earlier sitting has measured."""
    return [Taken.from_json(value) for value in json.loads(path.read_text())["records"]]


def tables(taken: Iterable[Taken]) -> str:
    """Markdown: for each axis and quantization a row for each contender at each value, beside the peer with the same
    draft setting (`auto`: the peer without one)."""
    axes: dict[tuple[str, str], list[Taken]] = defaultdict(list)
    for each in taken:
        axes[each.point.axis, each.point.quantization].append(each)
    return "\n".join(
        f"### {axis}, {quantization}\n\n{_table(axis, found)}" for (axis, quantization), found in axes.items()
    )


def _table(axis: str, taken: Sequence[Taken]) -> str:
    runs: dict[tuple[int, str], dict[int, Run]] = defaultdict(dict)
    others: dict[tuple[int, str], float] = defaultdict(float)
    for each in taken:
        key = (each.point.value, each.contender)
        runs[key][each.repeat] = each.run
        others[key] = max(others[key], each.other_cores)
    least = min(value for value, _ in runs)
    head = (
        f"| {axis} | contender | tokens/s | over the peer | first token ms | over the peer | gap p50 ms | gap p99 ms |"
        f" gap p50 over that at {least} | repeats | others' cores |\n|" + " --- |" * 11 + "\n"
    )
    lines = []
    for (value, name), mine in sorted(runs.items(), key=lambda item: (item[0][0], item[0][1].partition("+")[2])):
        theirs = runs.get((value, counterpart(name)), {})
        smallest = runs.get((least, name), {})
        figures = [
            f"{median(r.tokens_per_second for r in mine.values()):.2f}",
            _ratio(mine, theirs, _speed),
            f"{1e3 * median(map(first_token, mine.values())):.0f}",
            _ratio(mine, theirs, first_token),
            f"{1e3 * median(token_gap(r) for r in mine.values()):.1f}",
            f"{1e3 * median(percentile(r.gaps_s, 0.99) for r in mine.values()):.1f}",
            _ratio(mine, smallest, token_gap),
            str(len(mine)),
            f"{others[value, name]:.2f}",
        ]
        lines.append(f"| {AXES[axis].what.format(value)} | {name} | {' | '.join(figures)} |\n")
    return head + "".join(lines)


def counterpart(name: str) -> str:
    """Whom a contender is compared with."""
    return LLAMA_SERVER if name.endswith("+auto") else name.replace(server_of(name), LLAMA_SERVER, 1)


def _ratio(mine: Mapping[int, Run], theirs: Mapping[int, Run], of: Callable[[Run], float]) -> str:
    ratios = [of(mine[repeat]) / of(theirs[repeat]) for repeat in mine.keys() & theirs.keys()]
    return f"{median(ratios):.2f}x" if ratios else ""


def _speed(run: Run) -> float:
    return run.tokens_per_second


def first_token(run: Run) -> float:
    return median(run.first_token_s) if run.first_token_s else math.nan


def token_gap(run: Run) -> float:
    return percentile(run.gaps_s, 0.5)


def _taken(point: Point, contender: Contender, repeat: int, options: argparse.Namespace) -> Taken:
    """One server's life."""
    axis = AXES[point.axis]
    streams = point.value if point.axis == "streams" else 1
    tokens = point.value if point.axis == "context" else 256
    models = vocabulary_pair(point.value) if point.axis == "vocabulary" else long_pair(point.quantization)
    count = max(streams, 1 if point.axis == "context" else options.prompts)
    asked = _prompts(point, tokens, count)
    body = {**contender.body(models), "max_tokens": axis.max_tokens, "temperature": axis.temperature}
    with contender.running(models, streams, tokens + _ROOM) as url:
        _warm_up(url, body, contender, options)
        wait_for_quiet(options.noise, options.patience)
        others = OtherWork()
        run = asyncio.run(ask_all(url, asked, body, streams))
        return Taken(point, contender.name, repeat, run, others.cores())


def _warm_up(url: str, body: Mapping[str, Any], contender: Contender, options: argparse.Namespace) -> None:
    wanted = options.learning if contender.learns else options.warm_up
    warm = [chat_prompt(text) for text in CODE[-max(1, wanted // 24) :]]
    asyncio.run(ask_all(url, warm, {**body, "max_tokens": 24}, 1))


def _prompts(point: Point, tokens: int, count: int) -> list[str]:
    if point.axis != "context":
        return [chat_prompt(text) for text in CODE[:count]]
    return [_long_prompt(tokens, i) for i in range(count)]


def _long_prompt(tokens: int, number: int) -> str:
    """So many tokens of made-up Python; no two numbers begin alike."""
    lines = (f"def f{number}_{n}(x):\n    return x + {n * n % 97}\n\n" for n in range(tokens))
    text = "".join(itertools.islice(lines, tokens // 4))
    with Worker(worker_spec(selected_runtime())) as worker:
        worker.call("initialize", protocol=1)
        worker.call("load", role="main", path=str(sample_main()))
        found = worker.call("tokenize", text=text)["tokens"]
        said: str = worker.call("detokenize", tokens=found[:tokens])["text"]
    return said


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    try:
        taken = [t for path in options.tables for t in read(path)] if options.tables else measure(options)
    except PacelineError as error:
        print(f"error: {error.message}", *([f"help: {error.help}"] if error.help else []), sep="\n", file=sys.stderr)
        return error.exit_status
    print(tables(taken))
    return 0


if __name__ == "__main__":
    end_cleanly()
    started = time.monotonic()
    status = main()
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(status)
