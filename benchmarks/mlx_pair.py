"""The pairs of the benchmarks as MLX folders, made from the packaged GGUF samples: nothing is downloaded.

    python benchmarks/mlx_pair.py            the sample pair, the heavy model in 16, 8 and 4 bits, and a bad draft
    python benchmarks/mlx_pair.py --check    and compares the heavy model's greedy tokens with the sample's

Weights, sizes and tokenizer are in the GGUF file; here they get the names and layouts of Hugging Face's Llama, which
mlx-lm loads. The heavy model is enlarged as enlarge.py says. MLX keeps norms in 16 bits, so the hidden size is 4 times
the sample's: its norms are divided by 2, which is exact. mlx-lm's own `convert`, in the runtime, makes 8 and 4 bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enlarge import Array, Planned, Shape, Source
from heavy_pair import HeavyPair, greedy_tokens, sample_draft, sample_main
from paceline import paths
from paceline.errors import PacelineError, UsageError
from paceline.types import Runtime
from prompts import CODE, chat_prompt
from worker import selected_runtime

BITS = {"16-bit": None, "8-bit": 8, "4-bit": 4}
"""Quantization -> bits a weight; None: as it is, in float16."""

HEAVY = Shape(hidden=1024, layers=24, heads=16, kv_heads=4, feed_forward=4096)
"""0.4 billion parameters: MLX on a CPU is slow in 16 bits."""

NAME = "heavy-mlx"
BAD_DRAFT = "bad-draft-mlx"
_VERSION = 1
"""Raised when other files come out of the same source, so that cached ones are made anew."""

_HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPLITTING = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
}
"""`tokenizer.ggml.pre` -> the pattern of that family's `tokenizer.json`."""

_CONTROL = 3
"""GGUF's token type of special tokens."""


def sample_folders() -> tuple[Path, Path]:
    """The packaged sample pair, main model and draft, as MLX folders of 16 bits in the cache."""
    pairs = [(sample_main(), "paceline-coder-7m-fp16-mlx"), (sample_draft(), "paceline-coder-3m-fp16-mlx")]
    main, draft = (_once(_folder() / "benchmarks" / name, source) for source, name in pairs)
    return main, draft


def mlx_pair(quantizations: Sequence[str] = tuple(BITS)) -> HeavyPair:
    """The enlarged sample main model and a bad draft as MLX folders, made where the cache lacks them."""
    sample_folders()
    within = _folder() / "benchmarks"
    whole = _once(within / f"{NAME}-16-bit", sample_main(), HEAVY)
    mains = {q: within / f"{NAME}-{q}" for q in quantizations}
    for quantization, folder in mains.items():
        bits = BITS[quantization]
        if bits is not None and not folder.exists():
            quantize(whole, folder, bits)
    bad = _once(within / BAD_DRAFT, sample_draft(), noise=True)
    return HeavyPair(_folder(), mains, bad)


def write_folder(source: Path, folder: Path, shape: Shape | None = None, *, noise: bool = False) -> None:
    """Write the Llama of a GGUF file as an MLX folder: as it is, enlarged to `shape`, or with random weights.

    Raises UsageError for another architecture and for a tokenizer that has no `tokenizer.json` here.
    """
    model = Source.read(source)
    tensors = model.with_random_weights() if noise else model.enlarged(shape) if shape else model.as_it_is()
    folder.mkdir(parents=True)
    files = _tokenizer(model) | {"config.json": _config(model, shape or model.shape)}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    _write_safetensors(folder / "model.safetensors", tensors, shape or model.shape)


def quantize(source: Path, folder: Path, bits: int, runtime: Runtime | None = None) -> None:
    """Quantize an MLX folder with mlx-lm's own `convert`, in the selected MLX runtime unless one is given."""
    runtime = runtime or selected_runtime("mlx")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    command = [str(runtime.python), "-I", "-m", "mlx_lm", "convert", "--hf-path", str(source), "--mlx-path", str(part)]
    done = subprocess.run(
        [*command, "--quantize", "--q-bits", str(bits)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PacelineError(f"mlx-lm could not quantize {source.name} to {bits} bits: {done.stderr.strip()[-500:]}")
    part.rename(folder)


def _config(model: Source, shape: Shape) -> dict[str, Any]:
    """`config.json` of a Llama, as transformers has it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "intermediate_size": shape.feed_forward,
        "vocab_size": len(model.value("tokenizer.ggml.tokens")),
        "max_position_embeddings": int(model.value("llama.context_length")),
        "rope_theta": float(model.value("llama.rope.freq_base")),
        "rms_norm_eps": model.epsilon(shape),
        "tie_word_embeddings": "output.weight" not in model.weights,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float16",
        "bos_token_id": int(model.value("tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(model.value("tokenizer.ggml.eos_token_id")),
    }


def _tokenizer(model: Source) -> dict[str, dict[str, Any]]:
    """The tokenizer's files by name, as tokenizers and transformers have them."""
    kind, pre = model.value("tokenizer.ggml.model"), model.value("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _SPLITTING:
        raise UsageError(f"no tokenizer.json can be made of a {kind} tokenizer that splits as {pre}")
    tokens, types = model.value("tokenizer.ggml.tokens"), model.value("tokenizer.ggml.token_type")
    special = {i for i, token_type in enumerate(types) if token_type == _CONTROL}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": _SPLITTING[pre]}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bpe = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens) if i not in special},
        "merges": [merge.split(" ") for merge in model.value("tokenizer.ggml.merges")],
    }  # fmt: skip
    ends = {role: tokens[int(model.value(f"tokenizer.ggml.{role}_token_id"))] for role in ("bos", "eos")}
    names = {"bos_token": ends["bos"], "eos_token": ends["eos"]}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in sorted(special)],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": bpe,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "add_bos_token": bool(model.value("tokenizer.ggml.add_bos_token")),
            "chat_template": model.value("tokenizer.chat_template"),
            "model_max_length": int(model.value("llama.context_length")),
            "clean_up_tokenization_spaces": False,
        },
        "special_tokens_map.json": names,
    }


def _write_safetensors(path: Path, tensors: Iterable[Planned], shape: Shape) -> None:
    """All tensors as float16, one at a time in memory. The format: https://huggingface.co/docs/safetensors"""
    planned = sorted(tensors, key=lambda tensor: tensor.name)
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for tensor in planned:
        start, end = end, end + 2 * math.prod(tensor.shape)
        header[_hf_name(tensor.name)] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in planned:
            weights: Array = _with_halves_apart(tensor, shape)
            file.write(np.ascontiguousarray(weights, dtype="<f2").data)


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    layer, stem = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()  # type: ignore[union-attr]
    return f"model.layers.{layer}.{_HF_NAMES[stem]}.weight" if layer else f"{_HF_NAMES[stem]}.weight"


def _with_halves_apart(tensor: Planned, shape: Shape) -> Array:
    """The weights, where queries and keys have their rotary halves apart. In GGUF a head's rows alternate between the
    halves, because llama.cpp turns neighbours."""
    weights: Array = tensor.make()
    if not re.search(r"\.attn_[qk]\.", tensor.name):
        return weights
    rows, columns = weights.shape
    pairs = weights.reshape(rows // shape.head, shape.head // 2, 2, columns)
    apart: Array = pairs.swapaxes(1, 2).reshape(rows, columns)
    return apart


def _folder() -> Path:
    """The folder of what is made from the packaged samples."""
    digest = hashlib.sha256(sample_main().read_bytes() + sample_draft().read_bytes())
    digest.update(repr((_VERSION, HEAVY)).encode())
    return paths.cache() / "benchmarks" / f"mlx-{digest.hexdigest()[:12]}"


def _once(folder: Path, source: Path, shape: Shape | None = None, *, noise: bool = False) -> Path:
    if not folder.exists():
        print(f"making {folder.name} …", file=sys.stderr, flush=True)
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        write_folder(source, part, shape, noise=noise)
        part.rename(folder)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the MLX pairs in the cache folder and print where they are.")
    parser.add_argument("--quantizations", nargs="+", default=[*BITS], choices=[*BITS])
    parser.add_argument("--check", action="store_true", help="compare greedy tokens of the sample and the 16-bit model")
    options = parser.parse_args(argv)
    try:
        pair = mlx_pair(options.quantizations)
        for folder in (*sample_folders(), *pair.mains.values(), pair.bad_draft):
            size = sum(path.stat().st_size for path in folder.iterdir())
            print(f"{size / 1e6:8.1f} MB  {folder}")
        return _compare(mlx_pair(["16-bit"]).mains) if options.check else 0
    except PacelineError as error:
        print(f"error: {error.message}", *([f"help: {error.help}"] if error.help else []), sep="\n", file=sys.stderr)
        return error.exit_status


def _compare(mains: Mapping[str, Path]) -> int:
    prompts = [chat_prompt(text) for text in CODE[:24]]
    small = greedy_tokens(sample_folders()[0], prompts, runtime=selected_runtime("mlx"))
    large = greedy_tokens(mains["16-bit"], prompts, runtime=selected_runtime("mlx"))
    same = sum(a == b for a, b in zip(small, large, strict=True))
    print(f"greedy tokens equal for {same} of {len(prompts)} prompts ({sum(map(len, small))} tokens)")
    return 0 if same == len(prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
