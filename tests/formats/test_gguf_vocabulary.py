from __future__ import annotations

import pytest

from paceline.formats.gguf import read_gguf
from paceline.formats.gguf_vocabulary import pairing_facts, special_draft, token_texts

TOKENS = [f"t{i}" for i in range(200)]


def _facts(write_gguf, tmp_path, values, tensor_names=()):
    return pairing_facts(read_gguf(write_gguf(tmp_path / "v.gguf", values)), tensor_names)


# What llama.cpp assumes when a key is absent: type, add_bos, bos, add_eos, eos.
DEFAULTS = {
    "llama": ("SPM", True, 1, False, 2),
    "gpt2": ("BPE", False, 11, False, 11),
    "hybriddna": ("BPE", False, 11, False, 11),
    "whitespace": ("BPE", False, 11, False, 11),
    "gemma4": ("BPE", True, -1, False, -1),
    "bert": ("WPM", True, 101, False, -1),
    "t5": ("UGM", False, -1, True, 1),
    "rwkv": ("RWKV", False, -1, False, -1),
    "plamo2": ("PLAMO2", False, 1, False, 2),
    "test": ("TEST", False, -1, False, -1),
}


@pytest.mark.parametrize("model", DEFAULTS)
def test_absent_keys_have_llama_cpps_defaults(tmp_path, write_gguf, model):
    facts = _facts(write_gguf, tmp_path, {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": TOKENS})
    assert tuple(facts[k] for k in ("type", "add_bos", "bos", "add_eos", "eos")) == DEFAULTS[model]
    assert facts["problem"] is None
    assert facts["size"] == 200


@pytest.mark.parametrize("model", DEFAULTS)
def test_keys_of_the_file_come_before_defaults(tmp_path, write_gguf, model):
    values = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.bos_token_id": 50,
        "tokenizer.ggml.eos_token_id": 51,
        "tokenizer.ggml.add_bos_token": not DEFAULTS[model][1],
        "tokenizer.ggml.add_eos_token": not DEFAULTS[model][3],
    }
    facts = _facts(write_gguf, tmp_path, values)
    expected_bos = model == "gemma4" or not DEFAULTS[model][1]
    assert (facts["bos"], facts["eos"]) == (50, 51)
    assert facts["add_bos"] is expected_bos
    assert facts["add_eos"] is not DEFAULTS[model][3]


@pytest.mark.parametrize("pre", ["gemma4", "granite-embed-multi-311m"])
def test_some_pre_tokenizers_force_the_bos_token(tmp_path, write_gguf, pre):
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert _facts(write_gguf, tmp_path, values)["add_bos"] is True


@pytest.mark.parametrize(("pre", "add_bos"), [("llama-bpe", True), ("tekken", True), ("qwen2", False)])
def test_the_pre_tokenizer_decides_whether_bos_is_added(tmp_path, write_gguf, pre, add_bos):
    values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": TOKENS}
    facts = _facts(write_gguf, tmp_path, values)
    assert facts["add_bos"] is add_bos
    assert facts["pre"] == pre


@pytest.mark.parametrize("pre", ["chatglm-bpe", "glm4", "glm5"])
def test_glm_has_no_default_bos(tmp_path, write_gguf, pre):
    values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": TOKENS}
    assert _facts(write_gguf, tmp_path, values)["bos"] == -1


def test_ids_outside_the_vocabulary_do_not_count(tmp_path, write_gguf):
    values = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": TOKENS[:50]}
    assert _facts(write_gguf, tmp_path, values)["bos"] == -1, "the default lies outside"
    values = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.bos_token_id": 200}
    assert _facts(write_gguf, tmp_path, values)["bos"] == 1, "the file's id lies outside, so the default holds"


def test_texts_are_what_llama_cpp_compares(tmp_path, write_gguf):
    values = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "", b"b\0c", b"\0", "[EMPTY_1]"]}
    metadata = read_gguf(write_gguf(tmp_path / "v.gguf", values))
    assert token_texts(metadata) == [b"a", b"[EMPTY_1]", b"b", b"", b"[EMPTY_1]"]


def test_hybriddna_markers_are_no_text(tmp_path, write_gguf):
    marker = "\ue000"
    values = {
        "tokenizer.ggml.model": "hybriddna",
        "tokenizer.ggml.tokens": [f"AAA{marker}", "<oov>", f"AAA{marker}", marker, "x"],
    }
    metadata = read_gguf(write_gguf(tmp_path / "v.gguf", values))
    assert token_texts(metadata) == [f"AAA{marker}".encode(), b"<oov>", b"AAA", marker.encode(), b"x"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "names no tokenizer"),
        ({"tokenizer.ggml.model": "none"}, "no vocabulary"),
        ({"tokenizer.ggml.model": "no_vocab"}, "no vocabulary"),
        ({"tokenizer.ggml.model": "brandnew"}, "'brandnew' is unknown"),
        ({"tokenizer.ggml.model": "gpt2"}, "no token list"),
    ],
)
def test_without_a_vocabulary_the_problem_says_why(tmp_path, write_gguf, values, reason):
    facts = _facts(write_gguf, tmp_path, values)
    assert reason in facts["problem"]
    assert "digests" not in facts


def test_the_key_is_equal_exactly_for_equal_facts(tmp_path, write_gguf):
    base = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": TOKENS}
    key = _facts(write_gguf, tmp_path, base)["key"]
    assert _facts(write_gguf, tmp_path, {**base, "general.name": "other", "llama.context_length": 9})["key"] == key
    for change in (
        {"tokenizer.ggml.pre": "qwen2"},
        {"tokenizer.ggml.add_bos_token": True},
        {"tokenizer.ggml.eos_token_id": 3},
        {"general.architecture": "mamba"},
        {"tokenizer.ggml.tokens": [*TOKENS[:100], "x", *TOKENS[101:]]},
        {"tokenizer.ggml.tokens": TOKENS[:199]},
    ):
        assert _facts(write_gguf, tmp_path, {**base, **change})["key"] != key, change


@pytest.mark.parametrize(
    ("arch", "memory", "generation"),
    [
        ("llama", "attention", "causal"),
        ("mamba2", "recurrent", "causal"),
        ("qwen35", "hybrid", "causal"),
        ("falcon-h1", "hybrid", "causal"),
        ("llada", "attention", "diffusion"),
        ("bert", "attention", "encoder"),
        ("t5encoder", "attention", "encoder"),
    ],
)
def test_architectures_have_their_memory_and_generation(tmp_path, write_gguf, arch, memory, generation):
    facts = _facts(write_gguf, tmp_path, {"general.architecture": arch})
    assert (facts["memory"], facts["generation"]) == (memory, generation)


def test_a_model_without_causal_attention_is_an_encoder(tmp_path, write_gguf):
    facts = _facts(write_gguf, tmp_path, {"general.architecture": "qwen3", "qwen3.attention.causal": False})
    assert facts["generation"] == "encoder"


@pytest.mark.parametrize(
    ("arch", "tensors", "kind"),
    [
        ("eagle3", [], "eagle3"),
        ("gemma4-assistant", [], "gemma4-assistant"),
        ("dflash", ["a"], "dflash"),
        ("dflash", ["markov_w1.weight"], "dspark"),
        ("glm4moe", ["blk.3.nextn.eh_proj.weight"], "mtp"),
        ("glm4moe", ["blk.0.attn_q.weight", "blk.3.nextn.eh_proj.weight"], None),
        ("llama", ["blk.0.attn_q.weight"], None),
    ],
)
def test_special_drafts_are_told_from_models(tmp_path, write_gguf, arch, tensors, kind):
    values = {"general.architecture": arch, f"{arch}.block_count": 4}
    assert special_draft(read_gguf(write_gguf(tmp_path / "v.gguf", values)), tensors) == kind


# The facts libllama itself reports for the vocabularies: type, size, bos, eos, add_bos.
LIBLLAMA = {
    "aquila": ("BPE", 100008, 0, 0, False),
    "baichuan": ("SPM", 64000, 1, 2, True),
    "bert-bge": ("WPM", 30522, 101, -1, True),
    "deepseek-coder": ("BPE", 32256, 32013, 32014, True),
    "deepseek-llm": ("BPE", 102400, 100000, 100001, True),
    "falcon": ("BPE", 65024, 11, 11, False),
    "gemma-4": ("BPE", 262144, 2, 1, True),
    "gpt-2": ("BPE", 50257, 50256, 50256, False),
    "gpt-neox": ("BPE", 50432, 0, 0, False),
    "llama-bpe": ("BPE", 128256, 128000, 128001, True),
    "llama-spm": ("SPM", 32000, 1, 2, True),
    "mpt": ("BPE", 50432, 0, 0, False),
    "phi-3": ("SPM", 32064, 1, 32000, True),
    "qwen2": ("BPE", 151936, 151643, 151643, False),
    "qwen35": ("BPE", 151936, 151643, 151643, False),
    "refact": ("BPE", 49216, 0, 0, False),
    "starcoder": ("BPE", 49152, 0, 0, False),
}


@pytest.mark.parametrize("name", LIBLLAMA)
def test_real_vocabularies_read_as_libllama_reads_them(shared, name):
    facts = pairing_facts(read_gguf(shared / f"vocabs/ggml-vocab-{name}.gguf"), ())
    assert tuple(facts[k] for k in ("type", "size", "bos", "eos", "add_bos")) == LIBLLAMA[name]
    assert facts["add_eos"] is False
    assert len(facts["digests"]) == 129 * 16
