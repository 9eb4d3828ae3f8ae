from __future__ import annotations

import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.errors import ModelFileError
from paceline.formats.mlx import MlxFormat
from paceline.formats.safetensors import read_safetensors
from paceline.formats.tokenizer_json import read_token_texts, without_merges
from paceline.types import ModelKind

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}


def _weights(path, tensors):
    """`tensors` is name -> (dtype, shape, bytes)."""
    header, offset = {"__metadata__": {"format": "mlx"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    data = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(offset))


@pytest.fixture
def folder(tmp_path):
    """A complete little model."""
    folder = tmp_path / "pub" / "Tiny-fp16"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<end>"}]})
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "<end>", "chat_template": "{{ tools }}"})
    )
    _weights(folder / "model.safetensors", {"w.weight": ("F16", [4, 8], 64)})
    return folder


def test_reads_what_a_folder_says(folder):
    assert list(MlxFormat().find(folder.parents[1])) == [folder]
    facts = MlxFormat().read(folder)
    assert (facts.kind, facts.arch, facts.quantization) == (ModelKind.LLM, "llama", "fp16")
    assert (facts.parameters, facts.max_context_length) == (32, 2048)
    assert facts.size_bytes == (folder / "model.safetensors").stat().st_size
    assert (facts.bos_token, facts.eos_token) == ("<s>", "<end>")
    assert (facts.chat_template, facts.capabilities) == ("{{ tools }}", ("tool_use",))
    assert facts.pairing["size"] == 3


def test_the_template_file_comes_before_the_configured_one(folder):
    (folder / "chat_template.jinja").write_text("from the file")
    assert MlxFormat().read(folder).chat_template == "from the file"


def test_a_list_of_templates_gives_the_default_one(folder):
    templates = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert MlxFormat().read(folder).chat_template == "yes"


def test_packed_weights_count_as_what_they_hold(folder):
    quantization = {"bits": 4, "group_size": 64, "head": {"bits": 8, "group_size": 64}}
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization": quantization}))
    tensors = {
        "l.weight": ("U32", [8, 8], 256),
        "l.scales": ("F16", [8, 1], 16),
        "l.biases": ("F16", [8, 1], 16),
        "head.weight": ("U32", [8, 16], 512),
        "head.scales": ("F16", [8, 1], 16),
        "norm.weight": ("F16", [64], 128),
    }
    _weights(folder / "model.safetensors", tensors)
    facts = MlxFormat().read(folder)
    assert facts.quantization == "4bit"
    assert facts.parameters == 8 * 64 + 8 * 64 + 64


def test_the_kinds(folder):
    for change, kind in (
        ({"vision_config": {}}, ModelKind.VLM),
        ({"model_type": "bert", "architectures": ["BertModel"]}, ModelKind.EMBEDDINGS),
        ({"model_type": "modernbert", "architectures": ["ModernBertModel"]}, ModelKind.EMBEDDINGS),
    ):
        (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
        assert MlxFormat().read(folder).kind is kind


def test_a_folder_that_says_how_its_states_are_pooled_makes_embeddings(folder):
    file = folder / "modules.json"
    modules = [{"idx": 0, "type": "sentence_transformers.models.Transformer", "path": ""}]
    for more, kind in (
        ([], ModelKind.LLM),
        ([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}], ModelKind.EMBEDDINGS),
        ([{"type": "Pooling"}, 7, {"type": 7}], ModelKind.EMBEDDINGS),
    ):
        file.write_text(json.dumps(modules + more))
        assert MlxFormat().read(folder).kind is kind
    assert file in MlxFormat().files(folder)  # so the library reads anew when it changes
    for text, kind in (("{}", ModelKind.LLM), ("null", ModelKind.LLM)):
        file.write_text(text)
        assert MlxFormat().read(folder).kind is kind
    for text in ("[", "[" * 100_000, "\udcff"):
        file.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ModelFileError, match=r"modules\.json is not JSON"):
            MlxFormat().read(folder)


def test_without_a_tokenizer_the_problem_says_so(folder):
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in MlxFormat().read(folder).pairing["problem"]


def test_a_unigram_vocabulary_is_a_list(folder):
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["<unk>", 0], ["▁a", -1.5]]}}))
    assert read_token_texts(folder / "tokenizer.json") == [b"<unk>", "▁a".encode()]


def test_holes_empty_texts_and_nul_stay_apart(folder):
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"": 0, "\0": 1, "x": 3}}}))
    texts = read_token_texts(folder / "tokenizer.json")
    assert (len(texts), len(set(texts))) == (4, 4)
    assert not any(b"\0" in text for text in texts)


def test_half_a_surrogate_pair_is_a_text_like_others(folder):
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"\\ud800": 0, "é": 1}}}')
    assert read_token_texts(folder / "tokenizer.json") == [b"\xed\xa0\x80", "é".encode()]


_TEXTS = st.text(st.sampled_from('ab"\\\\:{}[], \\nmerges'), max_size=8)
_MERGES = st.lists(_TEXTS | st.lists(_TEXTS, max_size=3) | st.dictionaries(_TEXTS, _TEXTS, max_size=1), max_size=4)
_MODELS = st.fixed_dictionaries(
    {"vocab": st.dictionaries(_TEXTS, st.integers(0, 9)), "merges": _MERGES},
    optional={"extra": _MERGES, "other": st.fixed_dictionaries({"merges": _MERGES})},
)


@settings(max_examples=1000)
@given(model=_MODELS.flatmap(lambda model: st.permutations(list(model.items()))), indent=st.sampled_from([None, 1]))
def test_leaving_merges_out_leaves_the_rest_as_it_is(model, indent):
    whole = {"added_tokens": [], "model": dict(model), '"merges': ["[", '"merges": [', "}"]}
    short = json.loads(without_merges(json.dumps(whole, indent=indent).encode()))
    assert _blank(short) == _blank(whole)


def _blank(value):
    """The same without what is in lists called merges."""
    if isinstance(value, dict):
        return {k: [] if k == "merges" and isinstance(v, list) else _blank(v) for k, v in value.items()}
    return [_blank(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("merges", [["a b", "] }", "c\\"], [["a", "b"], ["}", ":"], ['"', '\\"}']]], ids=["old", "new"])
def test_merges_are_left_out_and_a_file_cut_off_anywhere_is_noticed(folder, merges):
    path = folder / "tokenizer.json"
    for indent in (None, 2):
        data = json.dumps({"model": {"vocab": {"a": 0, "merges": 1}, "merges": merges}}, indent=indent).encode()
        assert json.loads(without_merges(data))["model"]["merges"] == []
        for length in range(len(data)):
            path.write_bytes(data[:length])
            with pytest.raises(ModelFileError):
                read_token_texts(path)
        path.write_bytes(data)
        assert read_token_texts(path) == [b"a", b"merges"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b""),
        ("config.json", b"[]"),
        ("config.json", b"\xff\xfe"),
        ("config.json", b'{"a":' * 100_000),
        ("config.json", b'{"a": ' + b"9" * 10_000 + b"}"),
        ("config.json", b" " * (5 << 20)),
        ("tokenizer_config.json", b"nope"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": -1}}}'),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 1000000000000}}}'),
        ("chat_template.jinja", b"\xff"),
        ("model.safetensors", b""),
        ("model.safetensors", b"\x01"),
        ("model.safetensors", struct.pack("<Q", 2**63) + b"{}"),
        ("model.safetensors", struct.pack("<Q", 2) + b"[]"),
        ("model.safetensors", struct.pack("<Q", 9) + b'{"a": 1} '),
        (
            "model.safetensors",
            struct.pack("<Q", 54) + b'{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}',
        ),
    ],
)
def test_broken_files_are_refused_by_name(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(ModelFileError, match=file.split(".")[0]):
        MlxFormat().read(folder)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 500), replacement=st.binary(min_size=1, max_size=6))
def test_changed_headers_are_read_or_refused(folder, position, replacement):
    _weights(folder / "model.safetensors", {"w.weight": ("F16", [4, 8], 64), "v": ("F32", [2], 8)})
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[position % len(data) : position % len(data) + len(replacement)] = replacement
    (folder / "changed.safetensors").write_bytes(data)
    try:
        read_safetensors(folder / "changed.safetensors")
    except ModelFileError as error:
        assert "changed.safetensors" in error.message  # noqa: PT017 - both outcomes are right


def test_reads_the_shared_models(shared):
    facts = {p.name: MlxFormat().read(p) for p in MlxFormat().find(shared / "models")}
    assert {n: (f.quantization, f.parameters, f.max_context_length) for n, f in facts.items()} == {
        "other-vocab-1m-fp16": ("fp16", 918_144, 2048),
        "paceline-coder-3m-fp16": ("fp16", 2_622_720, 2048),
        "paceline-coder-7m-fp16": ("fp16", 7_344_384, 2048),
    }
    main = facts["paceline-coder-7m-fp16"]
    assert main.eos_token == "<|im_end|>"
    assert "<|im_start|>" in main.chat_template
    assert main.pairing["key"] == facts["paceline-coder-3m-fp16"].pairing["key"]
    assert main.pairing["key"] != facts["other-vocab-1m-fp16"].pairing["key"]
