"""Paceline and an engine's own server side by side, in one sitting, over HTTP.

    python benchmarks/run.py --quick                 the first quantization, code, one stream, a few draft lengths
    python benchmarks/run.py --engine mlx --quick    the same beside mlx_lm.server
    python benchmarks/run.py                         the whole matrix; many hours on a small machine
    python benchmarks/run.py --budget 60 --json a.json      an hour of it, the most important first; again: goes on
    python benchmarks/run.py --sweep --repeats 1 --prompts 2 --max-tokens 32 --contenders …    every cell once, cheaply
    python benchmarks/run.py --sweep --missed --repeats 3 …  then again, twice at most, those that miss a bar
    python benchmarks/run.py --streams 8 --quantizations Q8_0 --contenders paceline llama-server
    python benchmarks/run.py --tables a.json b.json  the tables of earlier sittings

Contenders take turns in each cell; one server at a time computes (session.py says how long each of them lives).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contenders import PACELINE, Contender, contenders
from engines import ENGINES, STREAMS, TEMPERATURES, Engine
from machine import describe_machine, measured_code
from paceline.errors import PacelineError
from prompts import KINDS
from report import Record, coverage, tables, verdict_table
from session import Asking, Life, Quiet, Servers
from sitting import Round, Taken, end_cleanly, expected_s, field_of, gone_on, in_minutes, is_met, keep, rounds, turned

ASKED_BY = (
    "client",
    "contenders",
    "engines",
    "enlarge",
    "heavy_pair",
    "mlx_pair",
    "mlx_peer",
    "peer",
    "prompts",
    "servers",
    "session",
)
"""The modules whose change means other figures."""


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
    parser.add_argument(
        "--sweep", action="store_true", help="begin with every cell once, starting as few servers as can be"
    )
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="begin no round that would end later")
    parser.add_argument(
        "--finalists", type=int, default=2, help="after the second repeat, the peer's fastest settings a cell; 0: all"
    )
    parser.add_argument("--missed", action="store_true", help="repeat no round whose cells meet all bars so far")
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
    asking = Asking(options.prompts, options.max_tokens, options.warm_up, options.learning, options.temperatures)
    head, earlier = gone_on(options.json, _head(options, engine, field, asking))
    records = [Record.from_json(value) for value in earlier.get("records", [])]
    taken = [Taken.from_json(value) for value in earlier.get("rounds", [])]
    for name, value in {**head["machine"], "peer": head["peer"], "code": head["code"]}.items():
        print(f"- {name}: {value}")
    print()
    repeats = range(options.first_repeat, options.first_repeat + options.repeats)
    order = rounds(options.quantizations, options.kinds, options.streams, repeats, sweep=options.sweep)
    left = [each for each in order if each not in {t.round for t in taken}]
    with Servers(asking) as servers:
        while left:
            each = left[0]
            if options.missed and is_met(each, records):
                left.pop(0)
                continue
            taking_part = turned(field_of(each, field, records, options.finalists), each.repeat)
            expected = expected_s(each, len(taking_part), taken)
            spent = time.monotonic() - started
            if options.budget is not None and spent + (expected or 0.0) > 60 * options.budget:
                print(f"{len(left)} of {len(order)} rounds are left; the next does not fit the budget", file=sys.stderr)
                break
            print(f"{each}: {len(taking_part)} contenders, {in_minutes(expected)}", file=sys.stderr)
            records += _round(each, taking_part, engine, servers, options)
            taken.append(Taken(each, len(taking_part), time.monotonic() - started - spent))
            left.pop(0)
            todo = in_minutes(sum(expected_s(r, len(taking_part), taken) or 0.0 for r in left))
            print(f"{len(order) - len(left)} of {len(order)} rounds, the rest {todo}", file=sys.stderr)
            if options.json:
                kept = {"rounds": [t.to_json() for t in taken], "records": [r.to_json() for r in records]}
                keep(options.json, {**head, **kept})
    return records


def _round(
    each: Round, field: Sequence[Contender], engine: Engine, servers: Servers, options: argparse.Namespace
) -> list[Record]:
    quiet = Quiet(options.noise, options.patience, options.retries)
    life = Life(engine.models(each.quantization, each.kind == "adversarial"), each.streams, each.repeat)
    servers.keep(field, life)
    records = []
    for place, cell in enumerate(each.cells(options.temperatures)):
        for contender in turned(field, place):
            records.append(servers.run(contender, cell, life, quiet))
            print(_say(records[-1]), file=sys.stderr, flush=True)
    return records


def _head(options: argparse.Namespace, engine: Engine, field: Sequence[Contender], asking: Asking) -> dict[str, Any]:
    """What all figures of one file have in common."""
    return {
        "measures": "matrix",
        "engine": options.engine,
        "machine": describe_machine(),
        "code": measured_code(ASKED_BY),
        "peer": engine.version() if any(c.server == engine.peer for c in field) else "none",
        "measured_with": asdict(asking),
        "contenders": [c.name for c in field],
    }


def _say(record: Record) -> str:
    speed = f"{record.run.tokens_per_second:.2f} tokens/s (others kept {record.other_cores:.2f} cores busy)"
    return f"{record.cell}, repeat {record.repeat}, {record.contender}: {speed}"


if __name__ == "__main__":
    end_cleanly()
    started = time.monotonic()
    status = main()
    print(f"took {time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(status)
