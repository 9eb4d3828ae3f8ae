"""Two contenders in turns, many times over: what a machine that gets faster and slower leaves of a small difference.

    python benchmarks/turns.py paceline llama-server --kind code                      the host's own speed
    python benchmarks/turns.py paceline+auto paceline --kind prose --streams 8        what speculation gains or costs
    python benchmarks/turns.py paceline paceline --options='--prompt-cache-bytes 0'   what an option of the first does

Both servers stay. In each pair both answer the same prompts, which neither has seen, one right after the other; who
begins changes from pair to pair (A B, B A, …), so that a steady drift cancels. What is told is the median of the pairs'
ratios, the first over the second, and between which two pairs it lies with some 95 % certainty, whatever the ratios'
distribution is (order statistics: the number of pairs below the true median is binomial).
"""

from __future__ import annotations

import argparse
import asyncio
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from client import Run, ask_all
from contenders import PACELINE, Contender, Models, contender
from engines import ENGINES
from machine import OtherWork, describe_machine, wait_for_quiet
from paceline.errors import PacelineError, UsageError
from prompts import KINDS, chat_prompt
from session import some, unasked
from sitting import end_cleanly, keep

_CERTAINTY = 0.95


@dataclass(frozen=True)
class Pair:
    """The same prompts, answered by both."""

    runs: tuple[Run, Run]
    other_cores: float
    """Cores that other programs kept busy meanwhile, at most."""


@dataclass(frozen=True)
class Median:
    """Of the pairs' ratios."""

    value: float
    low: float
    high: float
    """Between which it lies with the certainty promised; infinite where there are too few pairs for that."""


def speed(run: Run) -> float:
    """Tokens per second of wall time, prompts included."""
    return run.tokens_per_second


def first_token(run: Run) -> float:
    """Seconds to it, the mean over the answers."""
    return sum(run.first_token_s) / len(run.first_token_s)


def token_time(run: Run) -> float:
    """Seconds between tokens after the first, over all answers."""
    after = [(a.end - a.arrivals[0], a.tokens - 1) for a in run.answers if a.arrivals and a.tokens > 1]
    return sum(seconds for seconds, _ in after) / sum(tokens for _, tokens in after)


FIGURES: dict[str, Callable[[Run], float]] = {
    "tokens/s": speed,
    "first token": first_token,
    "time of a later token": token_time,
}


def median_of(ratios: Sequence[float]) -> Median:
    """Of at least one ratio; the interval is that of the sign test."""
    ranked, n = sorted(ratios), len(ratios)
    outside, rank = 0.0, 0
    while (outside := outside + 2 * math.comb(n, rank) / 2**n) <= 1 - _CERTAINTY:
        rank += 1
    bounds = (ranked[rank - 1], ranked[n - rank]) if rank else (0.0, math.inf)
    return Median(median(ranked), *bounds)


def table(pairs: Sequence[Pair], names: Sequence[str]) -> str:
    """Markdown: a row for each figure, the first contender's over the second's."""
    lines = [f"| {names[0]} over {names[1]} | median | between | pairs |\n| --- | --- | --- | --- |\n"]
    for name, of in FIGURES.items():
        found = median_of([of(a) / of(b) for a, b in (pair.runs for pair in pairs)])
        lines.append(f"| {name} | {found.value:.3f}x | {found.low:.3f} and {found.high:.3f} | {len(pairs)} |\n")
    return "".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare two contenders in turns.")
    parser.add_argument("contenders", nargs=2, help="as run.py names them")
    parser.add_argument("--engine", choices=[*ENGINES], default="llama.cpp")
    parser.add_argument("--quantization", default=None)
    parser.add_argument("--kind", choices=[*KINDS], default="code")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=2, help="in a turn; at least one for each stream")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--learning", type=int, default=256, help="tokens that each server generates before it counts")
    parser.add_argument("--options", default="", help="more options of `paceline serve`, for the first alone")
    parser.add_argument("--noise", type=float, default=0.1, help="cores that others may keep busy before a turn")
    parser.add_argument("--json", type=Path, help="keep every single figure in this file")
    options = parser.parse_args(argv)
    try:
        pairs = _sit(options)
    except PacelineError as error:
        print(f"error: {error.message}", *([f"help: {error.help}"] if error.help else []), sep="\n", file=sys.stderr)
        return error.exit_status
    print(table(pairs, [f"{options.contenders[0]} {options.options}".strip(), options.contenders[1]]))
    return 0


def _sit(options: argparse.Namespace) -> list[Pair]:
    engine = ENGINES[options.engine]
    sides = [contender(name) for name in options.contenders]
    if options.options and sides[0].server != PACELINE:
        raise UsageError(f"--options are for Paceline, not for {sides[0].server}")
    quantization = options.quantization or engine.quantizations[0]
    models = engine.models(quantization, options.kind == "adversarial")
    count = max(options.prompts, options.streams)
    more = shlex.split(options.options)
    pairs: list[Pair] = []
    with sides[0].running(models, options.streams, options=more) as a, sides[1].running(models, options.streams) as b:
        urls = (a, b)
        for side, url in zip(sides, urls, strict=True):
            _warm_up(side, url, models, options)
        for turn in range(options.pairs):
            prompts = [chat_prompt(text) for text in some(KINDS[options.kind], count, first=turn * count)]
            runs: dict[int, Run] = {}
            busy = 0.0
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                wait_for_quiet(options.noise, 60.0)
                others = OtherWork()
                runs[place] = _ask(sides[place], urls[place], models, prompts, options, options.max_tokens)
                busy = max(busy, others.cores())
            pairs.append(Pair((runs[0], runs[1]), busy))
            said = ", ".join(f"{name} {of(runs[0]) / of(runs[1]):.3f}x" for name, of in FIGURES.items())
            print(f"pair {turn + 1} of {options.pairs}: {said} (others kept {busy:.2f} cores busy)", file=sys.stderr)
            if options.json:
                keep(options.json, _content(options, engine.version(), pairs))
    return pairs


def _warm_up(side: Contender, url: str, models: Models, options: argparse.Namespace) -> None:
    texts = unasked()
    wanted = options.learning
    while wanted > 0:
        prompts = [chat_prompt(next(texts)) for _ in range(options.streams)]
        wanted -= max(1, _ask(side, url, models, prompts, options, options.max_tokens).tokens)


def _ask(
    side: Contender, url: str, models: Models, prompts: Sequence[str], options: argparse.Namespace, tokens: int
) -> Run:
    body = {**side.body(models), "max_tokens": tokens, "temperature": options.temperature}
    return asyncio.run(ask_all(url, prompts, body, options.streams))


def _content(options: argparse.Namespace, version: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    asked = {name: value for name, value in vars(options).items() if name != "json"}
    machine = describe_machine()
    return {
        "measures": "turns",
        "machine": machine,
        "peer": version,
        "asked": asked,
        "pairs": [asdict(pair) for pair in pairs],
    }


if __name__ == "__main__":
    end_cleanly()
    sys.exit(main())
