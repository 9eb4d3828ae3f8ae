"""The models of growth.py: the heavy pair made for longer contexts, and pairs of random weights with any vocabulary."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from contenders import Models
from enlarge import SEED, Array, Planned, Shape, Source, noise
from heavy_pair import QUANTIZATIONS, heavy_pair, once, sample_draft, sample_main, write
from paceline import paths
from paceline.errors import UsageError

LONGEST = 16384
"""Tokens of context that these models say they were made for."""

MAIN = Shape(hidden=1024, layers=8, heads=16, kv_heads=4, feed_forward=4096)
DRAFT = Shape(hidden=256, layers=2, heads=4, kv_heads=2, feed_forward=768)
"""Of the pairs with any vocabulary, which is many times the rest of such a draft."""

_NORMAL = 1
"""GGUF's token type of a token with nothing special."""


def long_pair(quantization: str) -> Models:
    """The heavy pair, whose files say `LONGEST`: what reading a prompt costs does not depend on what was learnt."""
    within = _folder() / "benchmarks"
    main_id, draft_id = f"long-{quantization.lower().replace('_', '-')}", "long-draft"
    main = within / main_id / f"{main_id}.gguf"
    draft = within / draft_id / f"{draft_id}.gguf"
    if not main.exists():
        source = heavy_pair([quantization]).mains[quantization]
        once(main, lambda path: _made_longer(source, path))
    once(draft, lambda path: _made_longer(sample_draft(), path))
    return Models(main, draft, main_id, draft_id, _folder())


def vocabulary_pair(size: int) -> Models:
    """A main model and a draft of random 16-bit weights with so many tokens, the sample's tokenizer and words that no
    text has. Raises UsageError for fewer tokens than the sample has."""
    within = _folder() / "benchmarks"
    main_id, draft_id = f"words-{size}", f"words-{size}-draft"
    main, draft = (within / name / f"{name}.gguf" for name in (main_id, draft_id))
    once(main, lambda path: write_random(path, MAIN, size))
    once(draft, lambda path: write_random(path, DRAFT, size))
    return Models(main, draft, main_id, draft_id, _folder())


def write_random(target: Path, shape: Shape, vocabulary: int) -> None:
    """Write a Llama of random 16-bit weights, whose matrix of embeddings is that of the output as well."""
    source = Source.read(sample_main())
    tokens, types = source.value("tokenizer.ggml.tokens"), source.value("tokenizer.ggml.token_type")
    added = range(len(tokens), vocabulary)
    if vocabulary < len(tokens):
        raise UsageError(f"the sample's tokenizer has {len(tokens)} tokens, so {vocabulary} are too few")
    overrides = {
        "general.name": f"{vocabulary} words",
        "general.file_type": QUANTIZATIONS["F16"],
        "llama.context_length": LONGEST,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.feed_forward,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.rope.dimension_count": shape.head,
        "llama.vocab_size": vocabulary,
        "tokenizer.ggml.tokens": [*tokens, *(f"<word{n}>" for n in added)],
        "tokenizer.ggml.token_type": [*types, *(_NORMAL for _ in added)],
    }
    write(source.reader, target, overrides, list(_tensors(shape, vocabulary)))


def _tensors(shape: Shape, vocabulary: int) -> Iterator[Planned]:
    random = np.random.default_rng(SEED)

    def matrix(name: str, rows: int, columns: int) -> Planned:
        return Planned(f"{name}.weight", (rows, columns), lambda: noise(random, (rows, columns)))

    def norm(name: str) -> Planned:
        return Planned(f"{name}.weight", (shape.hidden,), lambda: _ones(shape.hidden))

    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    yield matrix("token_embd", vocabulary, shape.hidden)
    yield norm("output_norm")
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield norm(f"{block}.attn_norm")
        yield matrix(f"{block}.attn_q", queries, shape.hidden)
        yield matrix(f"{block}.attn_k", keys, shape.hidden)
        yield matrix(f"{block}.attn_v", keys, shape.hidden)
        yield matrix(f"{block}.attn_output", shape.hidden, queries)
        yield norm(f"{block}.ffn_norm")
        yield matrix(f"{block}.ffn_gate", shape.feed_forward, shape.hidden)
        yield matrix(f"{block}.ffn_up", shape.feed_forward, shape.hidden)
        yield matrix(f"{block}.ffn_down", shape.hidden, shape.feed_forward)


def _ones(size: int) -> Array:
    weights: Array = np.ones(size, np.float32)
    return weights


def _made_longer(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    field = gguf.GGUFReader(target, "r+").get_field("llama.context_length")
    assert field is not None
    field.parts[field.data[0]][0] = LONGEST


def _folder() -> Path:
    return paths.cache() / "benchmarks" / "growth-1"
