"""Make a heavy pair of models without a download: the sample main model, enlarged (enlarge.py), as GGUF files.

python benchmarks/heavy_pair.py                     the 1 B model as F16, Q8_0 and Q4_K_M, and a bad draft
python benchmarks/heavy_pair.py --check             and compares its greedy tokens with the small model's
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from enlarge import SEED, Planned, Shape, Source
from paceline import paths
from paceline.errors import PacelineError
from paceline.types import Runtime
from prompts import CODE, chat_prompt
from worker import Worker, selected_runtime, worker_spec

QUANTIZATIONS = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15}
"""Name -> llama.cpp's `llama_ftype`."""

NAME = "heavy-1b"
BAD_DRAFT = "bad-draft"
_VERSION = 1
"""Raised when other files come out of the same source, so that cached ones are made anew."""


_QUANTIZE = """
import ctypes, sys
from llama_cpp import llama_cpp as ll
source, target, ftype, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
params = ll.llama_model_quantize_default_params()
params.ftype, params.nthread = ftype, threads
ll.llama_backend_init()
sys.exit(1 if ll.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) else 0)
"""


ONE_BILLION = Shape(hidden=2048, layers=16, heads=32, kv_heads=8, feed_forward=8192)


@dataclass(frozen=True)
class HeavyPair:
    """Where the files are. `folder` is laid out as a models folder of Paceline."""

    folder: Path
    mains: Mapping[str, Path]
    """By quantization."""
    bad_draft: Path


def heavy_pair(quantizations: Sequence[str] = tuple(QUANTIZATIONS), source: Path | None = None) -> HeavyPair:
    """The 1 B model enlarged from `source` (the sample main model unless given), made where the cache lacks it."""
    source = source or sample_main()
    folder = paths.cache() / "benchmarks" / f"models-{_key(source, ONE_BILLION)}"
    mains = {q: folder / "benchmarks" / NAME / f"{NAME}-{q}.gguf" for q in ("F16", *quantizations)}
    bad = folder / "benchmarks" / BAD_DRAFT / f"{BAD_DRAFT}-F16.gguf"
    once(mains["F16"], lambda path: enlarge(source, path, ONE_BILLION))
    for quantization in quantizations:
        if quantization != "F16":
            once(mains[quantization], lambda path, q=quantization: quantize(mains["F16"], path, q))  # type: ignore[misc]
    once(bad, lambda path: randomize(sample_draft(), path))
    return HeavyPair(folder, {q: mains[q] for q in quantizations}, bad)


def sample_main() -> Path:
    return paths.samples() / "paceline-coder-7m-q8_0.gguf"


def sample_draft() -> Path:
    return paths.samples() / "paceline-coder-3m-q8_0.gguf"


def enlarge(source: Path, target: Path, shape: Shape) -> None:
    """Write the model of `source` as an F16 model of `shape` that computes the same.

    Raises UsageError when the shapes do not allow it.
    """
    small = Source.read(source)
    overrides = {
        "general.name": f"{small.value('general.name')} as {shape.hidden} x {shape.layers}",
        "general.file_type": QUANTIZATIONS["F16"],
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": small.epsilon(shape),
    }
    write(small.reader, target, overrides, small.enlarged(shape))


def randomize(source: Path, target: Path) -> None:
    """Write a model of the shape and vocabulary of `source` with random weights: a draft that guesses badly."""
    model = Source.read(source)
    overrides = {"general.name": "Bad draft", "general.file_type": QUANTIZATIONS["F16"]}
    write(model.reader, target, overrides, model.with_random_weights())


def quantize(source: Path, target: Path, quantization: str, runtime: Runtime | None = None) -> None:
    """Quantize with llama.cpp's own function, in the selected llama.cpp runtime unless one is given."""
    runtime = runtime or selected_runtime()
    command = [str(runtime.python), "-I", "-c", _QUANTIZE, str(source), str(target)]
    done = subprocess.run(
        [*command, str(QUANTIZATIONS[quantization]), str(os.cpu_count() or 1)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PacelineError(f"llama.cpp could not quantize to {quantization}: {done.stderr.strip()[-500:]}")


def greedy_tokens(
    model: Path, prompts: Sequence[str], max_tokens: int = 48, runtime: Runtime | None = None
) -> list[list[int]]:
    """What a model says at temperature 0, by Paceline's worker; in the selected llama.cpp runtime unless given."""
    with Worker(worker_spec(runtime or selected_runtime())) as worker:
        worker.call("initialize", protocol=1)
        worker.call("load", role="main", path=str(model))
        return [worker.generate(prompt, max_tokens=max_tokens, temperature=0).tokens for prompt in prompts]


def write(reader: gguf.GGUFReader, target: Path, overrides: Mapping[str, Any], planned: Sequence[Planned]) -> None:
    """Write the metadata of `reader`, changed as `overrides` say, and the tensors: matrices as F16, norms as F32."""
    writer = gguf.GGUFWriter(target, "llama")
    fields = {f.name: f for f in reader.fields.values() if not f.name.startswith("GGUF.")}
    dropped = {"general.architecture", "general.quantization_version"}  # the writer's own, and none for F16
    for name, field in fields.items():
        if name not in dropped:
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, overrides.get(name, field.contents()), field.types[0], sub_type)
    for tensor in planned:
        kind = np.dtype(np.float32 if len(tensor.shape) == 1 else np.float16)
        writer.add_tensor_info(tensor.name, tensor.shape, kind, math.prod(tensor.shape) * kind.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in planned:
        writer.write_tensor_data(tensor.make())
    writer.close()


def _key(source: Path, shape: Shape) -> str:
    """Names the folder of what is made from this source, in this shape."""
    digest = hashlib.sha256(source.read_bytes())
    digest.update(repr((_VERSION, SEED, shape)).encode())
    return digest.hexdigest()[:12]


def once(path: Path, make: Callable[[Path], None]) -> None:
    """Make a file where it is missing: whole or not at all."""
    if path.exists():
        return
    print(f"making {path.name} …", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    make(part)
    part.rename(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the heavy pair in the cache folder and print where it is.")
    parser.add_argument("--source", type=Path, help="a Llama GGUF to enlarge; the sample main model unless given")
    parser.add_argument("--quantizations", nargs="+", default=[*QUANTIZATIONS], choices=[*QUANTIZATIONS])
    parser.add_argument("--check", action="store_true", help="compare greedy tokens of the small and the F16 model")
    options = parser.parse_args(argv)
    try:
        pair = heavy_pair(options.quantizations, options.source)
        for path in (*pair.mains.values(), pair.bad_draft):
            print(f"{path.stat().st_size / 1e6:8.1f} MB  {path}")
        return _compare(options.source or sample_main(), pair) if options.check else 0
    except PacelineError as error:
        print(f"error: {error.message}", *([f"help: {error.help}"] if error.help else []), sep="\n", file=sys.stderr)
        return error.exit_status


def _compare(source: Path, pair: HeavyPair) -> int:
    prompts = [chat_prompt(text) for text in CODE[:24]]
    small = greedy_tokens(source, prompts)
    large = greedy_tokens(pair.mains["F16"], prompts)
    same = sum(a == b for a, b in zip(small, large, strict=True))
    print(f"greedy tokens equal for {same} of {len(prompts)} prompts ({sum(map(len, small))} tokens)")
    return 0 if same == len(prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
