from __future__ import annotations

import pytest

from paceline.errors import ModelFileError
from paceline.formats.gguf_format import GgufFormat
from paceline.types import ModelKind

LLAMA = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 15,
    "llama.context_length": 4096,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "<s>", "</s>"],
    "tokenizer.ggml.bos_token_id": 2,
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.chat_template": "{% for m in messages %}{{ m }}{% endfor %}",
}
TENSORS = [("token_embd.weight", (256, 4), 12), ("norm.weight", (256,), 0)]


def test_reads_what_a_model_says(tmp_path, write_gguf):
    path = write_gguf(tmp_path / "tiny.gguf", LLAMA, TENSORS)
    facts = GgufFormat().read(path)
    assert facts.kind is ModelKind.LLM
    assert facts.size_bytes == path.stat().st_size
    assert (facts.name, facts.arch, facts.quantization) == ("Tiny", "llama", "Q4_K_M")
    assert facts.parameters == 256 * 4 + 256
    assert facts.max_context_length == 4096
    assert (facts.bos_token, facts.eos_token) == ("<s>", "</s>")
    assert facts.chat_template == LLAMA["tokenizer.chat_template"]
    assert facts.capabilities == ()


def test_a_template_that_knows_tools_means_tool_use(tmp_path, write_gguf):
    template = "{% if tools %}{{ tools }}{% endif %}"
    path = write_gguf(tmp_path / "t.gguf", {**LLAMA, "tokenizer.chat_template": template}, TENSORS)
    assert GgufFormat().read(path).capabilities == ("tool_use",)


def test_without_a_file_type_the_dominating_tensors_name_the_quantization(tmp_path, write_gguf):
    values = {k: v for k, v in LLAMA.items() if k != "general.file_type"}
    tensors = [("a", (256, 4), 12), ("b", (256, 8), 14), ("c", (4,), 0)]
    assert GgufFormat().read(write_gguf(tmp_path / "t.gguf", values, tensors)).quantization == "Q6_K"
    values["general.file_type"] = 1024  # "guessed"
    assert GgufFormat().read(write_gguf(tmp_path / "t.gguf", values, tensors)).quantization == "Q6_K"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"general.architecture": "bert"}, ModelKind.EMBEDDINGS),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, ModelKind.EMBEDDINGS),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 0}, ModelKind.LLM),
        ({"general.architecture": "qwen3vl"}, ModelKind.VLM),
    ],
)
def test_the_kind_of_a_model(tmp_path, write_gguf, values, kind):
    assert GgufFormat().read(write_gguf(tmp_path / "t.gguf", values, TENSORS)).kind is kind


@pytest.mark.parametrize(
    ("values", "tensors", "reason"),
    [
        (LLAMA, [], "a vocabulary and no weights"),
        ({}, TENSORS, "which architecture"),
        ({"general.architecture": "clip"}, TENSORS, "vision projector"),
        ({"general.architecture": "llama", "general.type": "adapter"}, TENSORS, "adapter"),
        ({"general.architecture": "eagle3"}, TENSORS, "draft of the kind eagle3"),
    ],
)
def test_what_is_no_model_is_refused_with_the_reason(tmp_path, write_gguf, values, tensors, reason):
    with pytest.raises(ModelFileError, match=reason):
        GgufFormat().read(write_gguf(tmp_path / "t.gguf", values, tensors))


def test_finds_models_and_leaves_out_what_is_none(tmp_path, write_gguf):
    for name in (
        "pub/model/m-Q4_0.gguf",
        "pub/model/mmproj-F16.gguf",
        "pub/split/s-00001-of-00002.gguf",
        "pub/split/s-00002-of-00002.gguf",
        "pub/headless/h-00002-of-00003.gguf",
        "pub/headless/h-00003-of-00003.gguf",
        "flat.GGUF",
        ".hidden/h.gguf",
        "readme.txt",
    ):
        write_gguf(tmp_path / name, {})
    found = [str(p.relative_to(tmp_path)) for p in GgufFormat().find(tmp_path)]
    assert sorted(found) == [
        "flat.GGUF",
        "pub/headless/h-00002-of-00003.gguf",
        "pub/model/m-Q4_0.gguf",
        "pub/split/s-00001-of-00002.gguf",
    ]


def test_a_split_model_is_all_its_shards(tmp_path, write_gguf):
    first = write_gguf(tmp_path / "m-00001-of-00003.gguf", LLAMA)
    others = [
        write_gguf(tmp_path / f"m-0000{i}-of-00003.gguf", {"split.no": i}, [(f"t{i}", (256, i), 0)]) for i in (2, 3)
    ]
    facts = GgufFormat().read(first)
    assert facts.size_bytes == sum(p.stat().st_size for p in (first, *others))
    assert facts.parameters == 256 * 5
    assert facts.pairing["size"] == 4
    assert list(GgufFormat().files(first)) == [first, *others]
    others[1].unlink()
    with pytest.raises(ModelFileError, match=r"m-00003-of-00003\.gguf is missing"):
        GgufFormat().read(first)


def test_loops_and_closed_folders_do_not_stop_the_search(tmp_path, write_gguf):
    model = write_gguf(tmp_path / "pub/model/m.gguf", {})
    (tmp_path / "pub/loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    try:
        assert list(GgufFormat().find(tmp_path)) == [model]
        assert list(GgufFormat().find(tmp_path / "absent")) == []
    finally:
        closed.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "quantization", "parameters"),
    [
        ("paceline-coder-7m-f16", "F16", 7_344_384),
        ("paceline-coder-7m-q8_0", "Q8_0", 7_344_384),
        ("paceline-coder-3m-q8_0", "Q8_0", 2_622_720),
    ],
)
def test_reads_the_shared_models(shared, name, quantization, parameters):
    facts = GgufFormat().read(shared / f"models/{name}.gguf")
    assert (facts.kind, facts.arch, facts.quantization) == (ModelKind.LLM, "llama", quantization)
    assert (facts.parameters, facts.max_context_length) == (parameters, 2048)
    assert facts.eos_token == "<|im_end|>"
    assert "<|im_start|>" in facts.chat_template


def test_the_shared_sentence_embedder_is_no_language_model(shared):
    facts = GgufFormat().read(shared / "models/all-minilm-l6-v2-q8_0.gguf")
    assert facts.kind is ModelKind.EMBEDDINGS
    assert facts.max_context_length == 512
