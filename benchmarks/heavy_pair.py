"""Make a heavy pair of models without a download: the sample main model, enlarged without changing what it computes.

The enlarged model has the cost of a model of its size and the mind of the small one, so a draft of the small model is
accepted as often as with the small model. How it is done, for a Llama of hidden size d enlarged to D:

- The residual stream is padded with zeros. RMS norm divides by sqrt(mean(x^2) + epsilon), and the mean of the padded
  vector is d/D of the real one, so the norm's weights are multiplied by sqrt(d/D) and epsilon by d/D.
- The real attention heads keep their key-value head: query head i of group g goes to place i of group g of the larger
  grouping. Heads, feed-forward units and layers that are added have random weights, and zeros where they would write
  to the residual stream. Their work is done and has no effect.

    python benchmarks/heavy_pair.py                     the 1 B model as F16, Q8_0 and Q4_K_M, and a bad draft
    python benchmarks/heavy_pair.py --check             and compares its greedy tokens with the small model's
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np

from paceline import paths
from paceline.errors import PacelineError, UsageError
from paceline.types import Runtime
from prompts import CODE, chat_prompt
from worker import Worker, selected_runtime, worker_spec

Array: TypeAlias = "np.ndarray[Any, Any]"

QUANTIZATIONS = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15}
"""Name -> llama.cpp's `llama_ftype`."""

NAME = "heavy-1b"
BAD_DRAFT = "bad-draft"
_VERSION = 1
"""Raised when other files come out of the same source, so that cached ones are made anew."""
_SEED = 20
_DEVIATION = 0.02

_QUANTIZE = """
import ctypes, sys
from llama_cpp import llama_cpp as ll
source, target, ftype, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
params = ll.llama_model_quantize_default_params()
params.ftype, params.nthread = ftype, threads
ll.llama_backend_init()
sys.exit(1 if ll.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) else 0)
"""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads


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
    _once(mains["F16"], lambda path: enlarge(source, path, ONE_BILLION))
    for quantization in quantizations:
        if quantization != "F16":
            _once(mains[quantization], lambda path, q=quantization: quantize(mains["F16"], path, q))  # type: ignore[misc]
    _once(bad, lambda path: randomize(sample_draft(), path))
    return HeavyPair(folder, {q: mains[q] for q in quantizations}, bad)


def sample_main() -> Path:
    return paths.samples() / "paceline-coder-7m-q8_0.gguf"


def sample_draft() -> Path:
    return paths.samples() / "paceline-coder-3m-q8_0.gguf"


def enlarge(source: Path, target: Path, shape: Shape) -> None:
    """Write the model of `source` as an F16 model of `shape` that computes the same.

    Raises UsageError when the shapes do not allow it.
    """
    reader = gguf.GGUFReader(source)
    small = _shape(reader)
    _check(small, shape)
    weights = {t.name: t for t in reader.tensors}
    epsilon = float(_value(reader, "llama.attention.layer_norm_rms_epsilon"))
    overrides = {
        "general.name": f"{_value(reader, 'general.name')} as {shape.hidden} x {shape.layers}",
        "general.file_type": QUANTIZATIONS["F16"],
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": epsilon * small.hidden / shape.hidden,
    }
    _write(reader, target, overrides, list(_Enlargement(small, shape, weights).tensors()))


def randomize(source: Path, target: Path) -> None:
    """Write a model of the shape and vocabulary of `source` with random weights: a draft that guesses badly."""
    reader = gguf.GGUFReader(source)
    random = np.random.default_rng(_SEED)

    def weights(tensor: gguf.ReaderTensor) -> Array:
        rows = _dequantized(tensor)
        if rows.ndim == 1:
            return rows
        return _noise(random, rows.shape)

    planned = [_Planned(t.name, tuple(_dequantized(t).shape), lambda t=t: weights(t)) for t in reader.tensors]  # type: ignore[misc]
    _write(reader, target, {"general.name": "Bad draft", "general.file_type": QUANTIZATIONS["F16"]}, planned)


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


def greedy_tokens(model: Path, prompts: Sequence[str], max_tokens: int = 48) -> list[list[int]]:
    """What a model says at temperature 0, computed by Paceline's worker in the selected llama.cpp runtime."""
    with Worker(worker_spec(selected_runtime())) as worker:
        worker.call("initialize", protocol=1)
        worker.call("load", role="main", path=str(model))
        return [worker.generate(prompt, max_tokens=max_tokens, temperature=0).tokens for prompt in prompts]


@dataclass(frozen=True)
class _Planned:
    """A tensor to write; its weights are made when its turn comes, so that one at a time is in memory."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as numpy has it."""
    make: Callable[[], Array]


class _Enlargement:
    def __init__(self, small: Shape, large: Shape, weights: Mapping[str, gguf.ReaderTensor]) -> None:
        self._small = small
        self._large = large
        self._weights = weights
        self._index = 0

    def tensors(self) -> Iterator[_Planned]:
        small, large = self._small, self._large
        vocabulary = _dequantized(self._weights["token_embd.weight"]).shape[0]
        for name in ("token_embd.weight", "output.weight"):
            if name in self._weights:
                yield self._placed(name, (vocabulary, large.hidden), filled=False)
        yield self._norm("output_norm.weight")
        heads = self._rows_of_heads(small.heads, small.group, large.group)
        kv_heads = self._rows_of_heads(small.kv_heads, 1, 1)
        for layer in range(large.layers):
            prefix = f"blk.{layer}"
            queries, keys = large.heads * large.head, large.kv_heads * large.head
            yield self._norm(f"{prefix}.attn_norm.weight")
            yield self._placed(f"{prefix}.attn_q.weight", (queries, large.hidden), rows=heads)
            yield self._placed(f"{prefix}.attn_k.weight", (keys, large.hidden), rows=kv_heads)
            yield self._placed(f"{prefix}.attn_v.weight", (keys, large.hidden), rows=kv_heads)
            yield self._placed(f"{prefix}.attn_output.weight", (large.hidden, queries), columns=heads, filled=False)
            yield self._norm(f"{prefix}.ffn_norm.weight")
            yield self._placed(f"{prefix}.ffn_gate.weight", (large.feed_forward, large.hidden))
            yield self._placed(f"{prefix}.ffn_up.weight", (large.feed_forward, large.hidden))
            yield self._placed(f"{prefix}.ffn_down.weight", (large.hidden, large.feed_forward), filled=False)

    def _rows_of_heads(self, count: int, small_group: int, large_group: int) -> Array:
        """Where the rows of the real heads lie among those of the larger model."""
        size = self._large.head
        places = [(i // small_group) * large_group + i % small_group for i in range(count)]
        rows: Array = np.concatenate([np.arange(p * size, (p + 1) * size) for p in places])
        return rows

    def _placed(
        self,
        name: str,
        shape: tuple[int, int],
        *,
        rows: Array | None = None,
        columns: Array | None = None,
        filled: bool = True,
    ) -> _Planned:
        """A matrix with the real weights at `rows` and `columns` (the first ones unless given) and, around them,
        random ones if `filled`, zeros otherwise."""
        random = np.random.default_rng([_SEED, self._index])
        self._index += 1

        def make() -> Array:
            matrix: Array = _noise(random, shape) if filled else np.zeros(shape, np.float16)
            if name in self._weights:
                real: Array = _dequantized(self._weights[name]).astype(np.float16)
                at_rows = np.arange(real.shape[0]) if rows is None else rows
                at_columns = np.arange(real.shape[1]) if columns is None else columns
                matrix[np.ix_(at_rows, at_columns)] = real
            return matrix

        return _Planned(name, shape, make)

    def _norm(self, name: str) -> _Planned:
        def make() -> Array:
            weights: Array = np.ones(self._large.hidden, np.float32)
            if name in self._weights:
                weights[: self._small.hidden] = _dequantized(self._weights[name])
            weights *= np.float32(math.sqrt(self._small.hidden / self._large.hidden))
            return weights

        return _Planned(name, (self._large.hidden,), make)


def _shape(reader: gguf.GGUFReader) -> Shape:
    if _value(reader, "general.architecture") != "llama":
        raise UsageError("only models of the llama architecture can be enlarged")
    known = re.compile(
        r"(token_embd|output_norm|output|blk\.\d+\.(attn_(norm|q|k|v|output)|ffn_(norm|gate|up|down)))\.weight"
    )
    strange = [t.name for t in reader.tensors if not known.fullmatch(t.name)]
    if strange:
        raise UsageError(f"the model has tensors that this tool cannot place: {', '.join(strange[:3])}")
    return Shape(
        hidden=int(_value(reader, "llama.embedding_length")),
        layers=int(_value(reader, "llama.block_count")),
        heads=int(_value(reader, "llama.attention.head_count")),
        kv_heads=int(_value(reader, "llama.attention.head_count_kv")),
        feed_forward=int(_value(reader, "llama.feed_forward_length")),
    )


def _check(small: Shape, large: Shape) -> None:
    if small.head != large.head:
        raise UsageError(f"the heads have {small.head} dimensions and would have {large.head}: they must be equal")
    if small.group > large.group or any(a > b for a, b in zip(astuple(small), astuple(large), strict=True)):
        raise UsageError(f"{large} is smaller than {small} in some size")


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise UsageError(f"the model has no {key}")
    return field.contents()


def _noise(random: Any, shape: tuple[int, ...]) -> Array:
    weights: Array = random.standard_normal(shape, dtype=np.float32)
    weights *= _DEVIATION
    noise: Array = weights.astype(np.float16)
    return noise


def _dequantized(tensor: gguf.ReaderTensor) -> Array:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def _write(reader: gguf.GGUFReader, target: Path, overrides: Mapping[str, Any], planned: Sequence[_Planned]) -> None:
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
    digest.update(repr((_VERSION, _SEED, shape)).encode())
    return digest.hexdigest()[:12]


def _once(path: Path, make: Callable[[Path], None]) -> None:
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
    prompts = [chat_prompt(text) for text in CODE]
    small = greedy_tokens(source, prompts)
    large = greedy_tokens(pair.mains["F16"], prompts)
    same = sum(a == b for a, b in zip(small, large, strict=True))
    print(f"greedy tokens equal for {same} of {len(prompts)} prompts ({sum(map(len, small))} tokens)")
    return 0 if same == len(prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
