"""Paceline and an engine's own server side by side, in one sitting, over HTTP.

    python benchmarks/run.py --quick                 the first quantization, code, one stream, a few draft lengths
    python benchmarks/run.py --engine mlx --quick    the same beside mlx_lm.server
    python benchmarks/run.py                         the whole matrix; many hours on a small machine
    python benchmarks/run.py --budget 60 --json a.json      an hour of it, the most important first; again: goes on
    python benchmarks/run.py --streams 8 --quantizations Q8_0 --contenders paceline llama-server
    python benchmarks/run.py --tables a.json b.json  the tables of earlier sittings

Every repeat starts each contender's server anew, one at a time, so that no server computes while another is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from client import ask_all
from contenders import PACELINE, Contender, Models, contenders
from engines import ENGINES, STREAMS, TEMPERATURES, Engine
from machine import OtherWork, describe_machine, wait_for_quiet
from paceline.errors import PacelineError, UsageError
from prompts import KINDS, chat_prompt
from report import Cell, Record, coverage, tables, verdict_table
from sitting import Round, end_cleanly, expected_s, field_of, keep, rounds, turned

_UNUSED = 10_000
"""Prompts from this one on are for warming up."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    try:
        if options.tables:
            records = [record for path in options.tables for record in read(path)]
        else:
            records = _sit(options)
    except PacelineError as error:
        print(f"error: {error.message}", *([f"help: {error.help}"] if error.help else []), sep="\n", file=sys.stderr)
        return error.exit_status
    text = matrix(records)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0


def matrix(records: Sequence[Record]) -> str:
    """Markdown: how much of each engine's matrix was measured, the verdicts, a table for each cell."""
    cells = [
        coverage([r for r in records if r.cell.quantization in engine.quantizations], engine.cells)
        for engine in ENGINES.values()
    ]
    return "\n".join(part for part in (*cells, verdict_table(records), tables(records)) if part)


def read(path: Path) -> list[Record]:
    """The records of an earlier sitting."""
    return [Record.from_json(value) for value in json.loads(path.read_text())["records"]]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare Paceline with llama-server built from the same source, or mlx_lm.server."
    )
    parser.add_argument("--engine", choices=[*ENGINES], default="llama.cpp")
    parser.add_argument("--quick", action="store_true", help="one quantization, code, one stream, temperature 0")
    parser.add_argument("--quantizations", nargs="+", help="as the engine has them, or its sample model")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS])
    parser.add_argument("--streams", nargs="+", type=int)
    parser.add_argument("--temperatures", nargs="+", type=float)
    parser.add_argument(
        "--contenders", nargs="+", help="names as contenders.py has them; `grid` is the peer's whole grid"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="begin no round that would end later")
    parser.add_argument(
        "--finalists", type=int, default=2, help="after the second repeat, the peer's fastest settings a cell; 0: all"
    )
    parser.add_argument("--first-repeat", type=int, default=0, help="its number, for a sitting in several parts")
    parser.add_argument("--prompts", type=int, default=4, help="of each kind; at least one for each stream")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--warm-up", type=int, default=24, help="tokens that a new server generates before it counts")
    parser.add_argument("--learning", type=int, default=256, help="as many where Paceline learns how far to draft")
    parser.add_argument("--noise", type=float, default=0.1, help="cores that others may keep busy during a run")
    parser.add_argument("--retries", type=int, default=2, help="how often a run that others disturbed is done again")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for such quiet before each run")
    parser.add_argument("--json", type=Path, help="keep every single figure in this file, and go on where it ends")
    parser.add_argument("--write", type=Path, help="write the tables to this file")
    parser.add_argument("--tables", nargs="+", type=Path, metavar="JSON", help="measure nothing, read earlier figures")
    options = parser.parse_args(argv)
    quick, engine = options.quick, ENGINES[options.engine]
    options.quantizations = options.quantizations or (engine.quantizations[:1] if quick else engine.quantizations)
    options.kinds = options.kinds or (["code"] if quick else [*KINDS])
    options.streams = options.streams or ([1] if quick else STREAMS)
    options.temperatures = options.temperatures or ([0.0] if quick else [*TEMPERATURES])
    whole = (PACELINE, engine.peer, f"{PACELINE}+auto", "grid")
    options.contenders = options.contenders or (engine.quick if quick else whole)
    known = (*engine.quantizations, engine.sample)
    if unknown := [q for q in options.quantizations if q not in known]:
        parser.error(f"{options.engine} is measured in {', '.join(known)}, not {', '.join(unknown)}")
    return options


def _sit(options: argparse.Namespace) -> list[Record]:
    """Measure what the options ask for and the JSON file does not hold yet, until the budget is spent; whole rounds are
    kept in the file as they end."""
    started = time.monotonic()
    engine = ENGINES[options.engine]
    field = contenders(options.contenders, engine.peer)
    head = _head(options, engine, field)
    records, done = _resumed(options.json, head)
    for name, value in {**head["machine"], "peer": head["peer"]}.items():
        print(f"- {name}: {value}")
    print()
    repeats = range(options.first_repeat, options.first_repeat + options.repeats)
    order = rounds(options.quantizations, options.kinds, options.streams, repeats)
    taken: list[tuple[Round, int, float]] = []
    for place, each in enumerate(order, 1):
        if asdict(each) in done:
            continue
        taking_part = turned(field_of(each, field, records, options.finalists), each.repeat)
        expected = expected_s(each, len(taking_part), taken)
        spent = time.monotonic() - started
        if options.budget is not None and spent + (expected or 0.0) > 60 * options.budget:
            print(f"{len(done)} of {len(order)} rounds are measured; the next does not fit the budget", file=sys.stderr)
            break
        about = "" if expected is None else f", about {expected / 60:.0f} minutes"
        print(f"round {place} of {len(order)}: {each}, {len(taking_part)} contenders{about}", file=sys.stderr)
        records += _round(each, taking_part, engine, options)
        taken.append((each, len(taking_part), time.monotonic() - started - spent))
        done.append(asdict(each))
        if options.json:
            keep(options.json, {**head, "rounds": done, "records": [r.to_json() for r in records]})
    return records


def _round(each: Round, field: Sequence[Contender], engine: Engine, options: argparse.Namespace) -> list[Record]:
    models = engine.models(each.quantization, each.kind == "adversarial")
    cells = each.cells(options.temperatures)
    records = []
    for contender in field:
        records += _undisturbed(contender, models, cells, each.repeat, options)
        for record in records[-len(cells) :]:
            print(_say(record), file=sys.stderr, flush=True)
    return records


def _head(options: argparse.Namespace, engine: Engine, field: Sequence[Contender]) -> dict[str, Any]:
    """What all figures of one file have in common."""
    measures = ("prompts", "max_tokens", "warm_up", "learning", "temperatures")
    return {
        "measures": "matrix",
        "engine": options.engine,
        "machine": describe_machine(),
        "peer": engine.version() if any(c.server == engine.peer for c in field) else "none",
        "measured_with": {name: getattr(options, name) for name in measures},
        "contenders": [c.name for c in field],
    }


def _resumed(path: Path | None, head: Mapping[str, Any]) -> tuple[list[Record], list[dict[str, Any]]]:
    """The records of an earlier sitting's whole rounds and those rounds; a round that was broken off is done again.

    Raises UsageError when the file's figures were taken with other code or in another way.
    """
    if path is None or not path.exists():
        return [], []
    earlier = json.loads(path.read_text())
    other = [name for name in ("engine", "measured_with", "contenders", "peer") if earlier.get(name) != head[name]]
    if earlier["machine"].get("paceline") != head["machine"]["paceline"]:
        other.append("paceline")
    if other:
        raise UsageError(f"{path} was measured with other {', '.join(other)}", help="give another file to --json")
    return read(path), earlier["rounds"]


def _undisturbed(
    contender: Contender, models: Models, cells: Sequence[Cell], repeat: int, options: argparse.Namespace
) -> list[Record]:
    """The session, done again while others disturb it; the least disturbed one when patience ends."""
    attempts = []
    for _ in range(1 + options.retries):
        attempts.append(list(_session(contender, models, cells, repeat, options)))
        if _disturbance(attempts[-1]) <= options.noise:
            break
    return min(attempts, key=_disturbance)


def _disturbance(records: Sequence[Record]) -> float:
    return max(record.other_cores for record in records)


def _session(
    contender: Contender, models: Models, cells: Sequence[Cell], repeat: int, options: argparse.Namespace
) -> Iterator[Record]:
    """One server's life: it starts, answers some requests that do not count, and then each cell's."""
    with contender.running(models, cells[0].streams) as url:
        body = {**contender.body(models), "max_tokens": options.max_tokens}
        _warm_up(url, body, cells[0], options.learning if contender.learns else options.warm_up)
        for index, cell in enumerate(cells):
            count = max(options.prompts, cell.streams)
            # Prompts of its own for every cell: a server that has seen one would not compute it again.
            prompts = [chat_prompt(text) for text in _some(KINDS[cell.kind], count, first=index * count)]
            wait_for_quiet(options.noise, options.patience)
            others = OtherWork()
            run = asyncio.run(ask_all(url, prompts, {**body, "temperature": cell.temperature}, cell.streams))
            yield Record(cell, contender.name, repeat, run, others.cores())


def _warm_up(url: str, body: dict[str, Any], cell: Cell, tokens: int) -> None:
    """Ask until so many tokens were generated; for what no run asks."""
    index = _UNUSED
    while tokens > 0:
        prompts = [chat_prompt(text) for text in _some(KINDS[cell.kind], 1, first=index)]
        run = asyncio.run(ask_all(url, prompts, {**body, "temperature": cell.temperature}, 1))
        tokens, index = tokens - max(1, run.tokens), index + 1


def _some(requests: Sequence[str], count: int, *, first: int) -> list[str]:
    """So many requests from the `first` on; when all are used up they come again, with a number, as other prompts."""
    rounds = [divmod(i, len(requests)) for i in range(first, first + count)]
    return [f"{requests[i]} ({again})" if again else requests[i] for again, i in rounds]


def _say(record: Record) -> str:
    speed = f"{record.run.tokens_per_second:.2f} tokens/s (others kept {record.other_cores:.2f} cores busy)"
    return f"{record.cell}, repeat {record.repeat}, {record.contender}: {speed}"


if __name__ == "__main__":
    end_cleanly()
    started = time.monotonic()
    status = main()
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(status)
