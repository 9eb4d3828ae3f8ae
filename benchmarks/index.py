"""What a large library costs the host: reading its models, and judging who can draft for whom.

    python benchmarks/index.py --json index.json [--models 10 100 1000] [--words 150000]

The models are made for it, with large vocabularies and no weights to speak of: ten vocabularies in five sizes, each of
them under many names (a link is a file of its own to the library). Times are CPU time of a process that does nothing
else, so other programs disturb them little; files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from machine import describe_machine, measured_code
from paceline import plugins
from paceline.library import Library
from paceline.library.pairs import PairIndex
from sitting import keep

_VOCABULARIES, _SIZES = 10, 5


@dataclass(frozen=True)
class Cost:
    """CPU seconds of one kind of work over a library of so many models."""

    models: int
    work: str
    cpu_s: float
    pairs: int | None = None
    """How many were judged."""


def read_library(models: Path, cache: Path) -> tuple[float, None]:
    """CPU seconds until all models are known."""
    begun = time.process_time()
    Library(plugins.load().formats.values(), [models], cache / "models.sqlite").models()
    return time.process_time() - begun, None


def judge_one(models: Path, cache: Path) -> tuple[float, int]:
    """CPU seconds of all drafts of the largest model, and how many there are; reading the library not included."""
    return _judged(models, cache, lambda library: max(library.models(), key=lambda m: m.facts.size_bytes))


def judge_all(models: Path, cache: Path) -> tuple[float, int]:
    """The same of every pair."""
    return _judged(models, cache, lambda library: None)


def _judged(models: Path, cache: Path, main: Callable[[Library], Any]) -> tuple[float, int]:
    active = plugins.load()
    library = Library(active.formats.values(), [models], cache / "models.sqlite")
    chosen = main(library)
    begun = time.process_time()
    found = PairIndex(library, active, cache / "pairs.sqlite").pairs(chosen)
    return time.process_time() - begun, len(found)


def measure(count: int, words: int, folder: Path) -> list[Cost]:
    """Everything of a library with so many models, made below `folder`; every step in a process of its own."""
    models, cache = folder / "models", folder / "cache"
    fill(models, count, words)
    steps: list[tuple[str, Callable[[Path, Path], tuple[float, int | None]]]] = [
        ("all models read for the first time", read_library),
        ("the same library at the next start", read_library),
        ("one model more", read_library),
        ("who can draft for one model", judge_one),
        ("every pair, for the first time", judge_all),
        ("every pair, at the next start", judge_all),
    ]
    costs = []
    for work, step in steps:
        if work == "one model more":
            os.link(_first(models), _first(models).with_name("added-F16.gguf"))
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawned) as process:
            cpu_s, pairs = process.submit(step, models, cache).result()
        costs.append(Cost(count, work, cpu_s, pairs))
        print(f"{count} models, {work}: {cpu_s * 1e3:.1f} ms", file=sys.stderr, flush=True)
    return costs


def fill(models: Path, count: int, words: int) -> None:
    """Write so many models with so many tokens each."""
    sources: dict[tuple[int, int], Path] = {}
    for number in range(count):
        kind = number % _VOCABULARIES, number // _VOCABULARIES % _SIZES
        path = models / f"publisher{kind[0]}" / f"model-{number}" / f"model-{number}-F16.gguf"
        path.parent.mkdir(parents=True)
        if kind in sources:
            os.link(sources[kind], path)
        else:
            _write(path, kind[0], (kind[1] + 1) * 64, words)
            sources[kind] = path


def _first(models: Path) -> Path:
    return models / "publisher0" / "model-0" / "model-0-F16.gguf"


def _write(path: Path, vocabulary: int, rows: int, words: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    # Like a real one, it differs from the others in its last words only.
    tokens = [f"w{n:06x}" if n < words - 8 else f"v{vocabulary}-{n}" for n in range(words)]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * words)
    writer.add_token_merges([f"w{n:06x} w{n + 1:06x}" for n in range(words)])
    writer.add_tensor("token_embd.weight", np.zeros((rows, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tables(content: Mapping[str, Any]) -> str:
    """Markdown: a row for each kind of work, a column for each size of the library."""
    costs = [Cost(**value) for value in content["records"]]
    sizes = sorted({c.models for c in costs})
    head = f"| CPU time, models of {content['words']:,} words | {' | '.join(f'{n:,} models' for n in sizes)} |\n"
    rows = [
        f"| {work} | {' | '.join(_said(c) for c in sorted(costs, key=lambda c: c.models) if c.work == work)} |\n"
        for work in dict.fromkeys(c.work for c in costs)
    ]
    return f"{head}|{' --- |' * (1 + len(sizes))}\n{''.join(rows)}"


def _said(cost: Cost) -> str:
    each = cost.pairs or cost.models
    unit, share = "pair" if cost.pairs else "model", cost.cpu_s / each
    return (
        f"{cost.cpu_s * 1e3:,.0f} ms ({f'{share * 1e3:.1f} ms' if share > 1e-3 else f'{share * 1e6:.1f} µs'} a {unit})"
    )


def read(path: Path) -> dict[str, Any]:
    """What an earlier sitting has measured."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what a large library costs the host.")
    parser.add_argument("--models", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--words", type=int, default=150_000, help="of each vocabulary")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    options = parser.parse_args(argv)
    content = {
        "measures": "index",
        "machine": describe_machine(),
        "code": measured_code(("index",)),
        "words": options.words,
        "records": [asdict(cost) for cost in _costs(options.models, options.words)],
    }
    if options.json:
        keep(options.json, content)
    print(tables(content))
    return 0


def _costs(sizes: Iterable[int], words: int) -> list[Cost]:
    costs = []
    for count in sizes:
        with tempfile.TemporaryDirectory() as folder:
            costs += measure(count, words, Path(folder))
    return costs


if __name__ == "__main__":
    sys.exit(main())
