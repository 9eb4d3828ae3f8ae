"""What llama.cpp makes of a GGUF file's vocabulary: the facts its draft check compares.

Keys, defaults for absent keys and forced values are those of `llama_vocab::impl::load` in llama.cpp's
`src/llama-vocab.cpp` (commit 0c1e57098); the families of architectures are those of `src/llama-arch.cpp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.formats.digests import pairing_key, prefix_digests

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from paceline.formats.gguf import GgufMetadata

FACTS_VERSION = 1
"""Part of every pairing key; raised when these facts change their meaning."""

FIRST_COMPARED = 5
"""llama.cpp's SPEC_VOCAB_CHECK_START_TOKEN_ID: tokens before it may differ."""

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
HYBRID = frozenset(
    {
        "jamba",
        "falcon-h1",
        "plamo2",
        "granitehybrid",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen3next",
        "kimi-linear",
        "bailingmoe3",
        "kimi-k3",
        "glm5-next",
        "qwen35",
        "qwen35moe",
        "qwen4exp",
        "deepseek4",
        "minimax-01",
    }
)
DIFFUSION = frozenset({"dream", "llada", "llada-moe", "rnd1"})
ENCODERS = frozenset(
    {
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "gemma-embedding",
        "llama-embed",
        "t5encoder",
    }
)

_TYPES = {
    "llama": "SPM",
    "gpt2": "BPE",
    "hybriddna": "BPE",
    "whitespace": "BPE",
    "gemma4": "BPE",
    "bert": "WPM",
    "t5": "UGM",
    "rwkv": "RWKV",
    "plamo2": "PLAMO2",
    "test": "TEST",
}
_BOS_EOS = {
    "llama": (1, 2),
    "gpt2": (11, 11),
    "hybriddna": (11, 11),
    "whitespace": (11, 11),
    "bert": (101, -1),
    "t5": (-1, 1),
    "plamo2": (1, 2),
}
_NO_BOS_PRE = frozenset({"chatglm-bpe", "glm4", "glm5"})
_ADD_BOS_PRE = frozenset(
    {
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
        "jina-v5-nano",
        "tekken",
        "chameleon",
    }
)
_FORCED_BOS_PRE = frozenset({"gemma4", "granite-embed-multi-311m"})
_DNA_MARKER = b"\xee\x80\x80"


def pairing_facts(metadata: GgufMetadata, tensor_names: Collection[str]) -> dict[str, object]:
    """The facts the pair rules of GGUF engines use, as JSON values, with their `key`.

    `tensor_names` are those of all shards. `problem` says why there is no usable vocabulary, else it is None:
    then `type`, `size`, `add_bos`, `bos`, `add_eos`, `eos` (ids; -1 is none), `pre` and `digests` hold.
    """
    arch = metadata.text("general.architecture")
    facts: dict[str, object] = {
        "version": FACTS_VERSION,
        "arch": arch,
        "memory": "recurrent" if arch in RECURRENT else "hybrid" if arch in HYBRID else "attention",
        "generation": _generation(arch, metadata),
        "special_draft": special_draft(metadata, tensor_names),
        **_vocabulary(metadata),
    }
    facts["key"] = pairing_key(facts)
    return facts


def token_texts(metadata: GgufMetadata) -> list[bytes]:
    """The text of every token as llama.cpp compares it: never empty in the file's sense, ended by its first NUL."""
    texts = list(metadata.tokens or ())
    if metadata.text("tokenizer.ggml.model") == "hybriddna":
        _strip_dna_marker(texts)
    if _needs_care(texts):
        named = (text or f"[EMPTY_{i}]".encode() for i, text in enumerate(texts))
        texts = [text.partition(b"\0")[0] for text in named]
    return texts


def read_token_texts(path: Path) -> list[bytes]:
    """`token_texts` of a file. Raises `ModelFileError`."""
    from paceline.formats.gguf import read_gguf

    return token_texts(read_gguf(path))


def special_draft(metadata: GgufMetadata, tensor_names: Collection[str]) -> str | None:
    """Which kind of draft this is that works only with the model it was made for; None for a model of its own.

    The kinds are `eagle3`, `dflash`, `dspark`, `gemma4-assistant` and `mtp`. Main models may carry the tensors of
    multi-token prediction too; a side-car is what lacks the first block.
    """
    arch = metadata.text("general.architecture")
    if arch == "dflash":
        return "dspark" if "markov_w1.weight" in tensor_names else "dflash"
    if arch in ("eagle3", "gemma4-assistant"):
        return arch
    blocks = metadata.integer(f"{arch}.block_count") or 0
    if f"blk.{blocks - 1}.nextn.eh_proj.weight" in tensor_names:
        first_block_is_there = blocks > 1 and any(name.startswith("blk.0.") for name in tensor_names)
        return None if first_block_is_there else "mtp"
    return None


def _generation(arch: str | None, metadata: GgufMetadata) -> str:
    if arch in DIFFUSION:
        return "diffusion"
    if arch in ENCODERS or metadata.flag(f"{arch}.attention.causal") is False:
        return "encoder"
    return "causal"


def _vocabulary(metadata: GgufMetadata) -> dict[str, object]:
    model = metadata.text("tokenizer.ggml.model")
    if model is None:
        return {"problem": "the file names no tokenizer (tokenizer.ggml.model)"}
    if model in ("none", "no_vocab"):
        return {"problem": "the model works on numbers and has no vocabulary"}
    if model not in _TYPES:
        return {"problem": f"the tokenizer {model!r} is unknown"}
    if metadata.tokens is None:
        return {"problem": "the file holds no token list (tokenizer.ggml.tokens)"}
    texts = token_texts(metadata)
    pre = "gemma4" if model == "gemma4" else metadata.text("tokenizer.ggml.pre")
    bos, eos = _BOS_EOS.get(model, (-1, -1))
    if _TYPES[model] == "BPE" and pre in _NO_BOS_PRE:
        bos = -1
    return {
        "problem": None,
        "type": _TYPES[model],
        "size": len(texts),
        "add_bos": _add_bos(metadata, _TYPES[model], pre),
        "bos": _special_id(metadata.integer("tokenizer.ggml.bos_token_id"), bos, len(texts)),
        "add_eos": _or(metadata.flag("tokenizer.ggml.add_eos_token"), _TYPES[model] == "UGM"),
        "eos": _special_id(metadata.integer("tokenizer.ggml.eos_token_id"), eos, len(texts)),
        "pre": pre,
        "digests": prefix_digests(texts, FIRST_COMPARED),
    }


def _add_bos(metadata: GgufMetadata, vocabulary_type: str, pre: str | None) -> bool:
    default = vocabulary_type in ("SPM", "WPM") or (vocabulary_type == "BPE" and pre in _ADD_BOS_PRE)
    if vocabulary_type == "BPE" and pre in _FORCED_BOS_PRE:
        return True
    return _or(metadata.flag("tokenizer.ggml.add_bos_token"), default)


def _special_id(value: int | None, default: int, size: int) -> int:
    """An id from the file counts if it is in the vocabulary, else the default does, if that is."""
    if value is not None and 0 <= value < size:
        return value
    return default if default < size else -1


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _needs_care(texts: list[bytes]) -> bool:
    """Whether a text is empty or holds a NUL; both show in the joined texts, which are searched at C speed."""
    joined = b"\0".join([b"", *texts, b""])
    return b"\0\0" in joined or joined.count(b"\0") != len(texts) + 1


def _strip_dna_marker(texts: list[bytes]) -> None:
    """k-mer ids follow `<oov>`; a marker keeps their texts distinct in the file and is no part of them."""
    if b"<oov>" not in texts:
        return
    for i in range(len(texts) - 1 - texts[::-1].index(b"<oov>") + 1, len(texts)):
        if len(texts[i]) > len(_DNA_MARKER):
            texts[i] = texts[i].removesuffix(_DNA_MARKER)
