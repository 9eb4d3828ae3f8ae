"""What only the MLX worker meets: caches that forget or cannot go back, and folders that bring code."""

import json
import shutil
import struct
from pathlib import Path

import pytest

pytestmark = [pytest.mark.runtime, pytest.mark.parametrize("candidate", ["mlx"], indirect=True)]

SEEDED = {"temperature": 0.8, "seed": 3}


@pytest.fixture
def variant(candidate, tmp_path):
    """A function that copies the main model and changes a JSON file of it: `variant("config.json", key=value)`."""

    def copy(name, **changes):
        folder = Path(shutil.copytree(candidate.main, tmp_path / "variant", copy_function=shutil.copyfile))
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | changes), encoding="utf-8")
        return folder

    return copy


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"model_file": "brought.py"}),
        ("tokenizer_config.json", {"tokenizer_class": "Brought", "auto_map": {"AutoTokenizer": ["brought.B", None]}}),
    ],
    ids=["model", "tokenizer"],
)
def test_code_that_a_folder_brings_is_not_run(worker, variant, refused, name, changes):
    folder = variant(name, **changes)
    trace = folder / "was-here"
    (folder / "brought.py").write_text(f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass B: pass\n")
    with pytest.raises(refused, match="no model's code is run here") as error:
        worker.call("load", role="main", path=str(folder))
    assert error.value.kind == "load_failed"
    assert not trace.exists()


def test_the_name_of_a_repository_is_not_looked_up(worker, refused):
    with pytest.raises(refused, match="is no folder") as error:
        worker.call("load", role="main", path="someone/some-model")
    assert error.value.kind == "load_failed"


RING = 64 + 768
"""Positions that a sliding window of 64 tokens keeps: itself and what can be taken back."""


@pytest.fixture
def windowed(variant):
    return variant("config.json", layer_types=["sliding_attention", "full_attention"] * 4, sliding_window=64)


@pytest.mark.parametrize("length", [60, RING - 20], ids=["within the ring", "around it"])
def test_a_draft_changes_nothing_beyond_a_sliding_window(worker, windowed, candidate, length):
    worker.call("load", role="main", path=str(windowed), context_length=2048)
    worker.call("load", role="draft", path=str(candidate.draft))
    request = {"prompt": _long(worker, candidate, length), "sampling": SEEDED, "max_tokens": 60, "ignore_eos": True}
    plain = worker.generate(**request)
    answer = worker.generate(**request, draft={"exact_tokens": 4})
    assert answer.tokens == plain.tokens
    assert answer.result["acceptance"]["accepted"] == answer.drafted > 0
    assert answer.result["draft_skipped"] is None


def test_what_a_sliding_window_still_knows_is_used_and_what_it_forgot_is_computed_anew(worker, windowed, candidate):
    worker.call("load", role="main", path=str(windowed), context_length=2048, options={"parallel": 1})
    prompt = _long(worker, candidate, RING + 300)
    request = {"sampling": SEEDED, "max_tokens": 8}
    cold = worker.generate(prompt=prompt, **request)
    warm = worker.generate(prompt=prompt, **request)
    assert warm.result["cached_tokens"] == len(prompt) - 1
    assert warm.tokens == cold.tokens
    assert worker.generate(prompt=prompt[:500], **request).result["cached_tokens"] == 499
    anew = worker.generate(prompt=prompt[:200], **request)
    assert anew.result["cached_tokens"] == 0
    worker.call("load", role="main", path=str(windowed), context_length=2048)
    assert worker.generate(prompt=prompt[:200], **request).tokens == anew.tokens


@pytest.mark.parametrize("draft", [None, {"exact_tokens": 3}, {}], ids=json.dumps)
def test_each_of_several_answers_is_what_it_is_alone(paired, candidate, draft):
    requests = [
        {
            "prompt": _long(paired, candidate, 20 + 61 * n),
            "sampling": {"temperature": 0.3 * n, "seed": n, "repeat_penalty": 1 + 0.1 * n},
            "max_tokens": 24 + 5 * n,
            "ignore_eos": True,
            "draft": draft if n % 2 else None,
        }
        for n in range(5)
    ]
    alone = [paired.generate(**request) for request in requests]
    ids = [paired.begin("generate", **request) for request in requests]
    for id, single in zip(ids, alone, strict=True):
        assert paired.generated(id).tokens == single.tokens


def _long(worker, candidate, length):
    """A prompt of so many tokens that is no repetition."""
    text = "".join(f"def close_{n}(x): return x - {n * n}\n" for n in range(length // 6)) + candidate.prompt
    return worker.call("tokenize", text=text)["tokens"][-length:]


def test_a_recurrent_model_takes_a_draft_and_is_one(worker, candidate, tmp_path):
    mamba = _mamba(tmp_path / "mamba", candidate.main)
    for main, draft in ((mamba, candidate.draft), (candidate.main, mamba)):
        worker.call("load", role="main", path=str(main))
        worker.call("load", role="draft", path=str(draft))
        request = {"prompt": candidate.prompt, "sampling": {"temperature": 0}, "max_tokens": 12}
        plain = worker.generate(**request)
        drafted = worker.generate(**request, draft={"exact_tokens": 2})
        assert drafted.result["acceptance"]["rejected"] > 0
        assert drafted.tokens == plain.tokens


def test_every_token_the_files_name_ends_the_answer(worker, variant, candidate):
    worker.call("load", role="main", path=str(candidate.main))
    tokens = worker.generate(prompt=candidate.prompt, sampling={"temperature": 0}, max_tokens=12).tokens
    folder = variant("config.json", eos_token_id=[4095, tokens[4]])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokens[9]}))
    worker.call("load", role="main", path=str(folder))
    answer = worker.generate(prompt=candidate.prompt, sampling={"temperature": 0}, max_tokens=12)
    assert answer.result["stop_reason"] == "eosFound"
    assert answer.tokens == tokens[: tokens.index(tokens[4]) + 1]


def test_a_seed_and_all_samplers_together_are_lossless(paired, candidate):
    sampling = {
        "temperature": 1.1, "top_k": 0, "top_p": 0.97, "min_p": 0.0, "repeat_penalty": 1.2, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "repeat_last_n": -1, "logit_bias": {"262": -2.0}, "seed": 11,
        "dry_multiplier": 0.5, "typical_p": 0.98, "xtc_probability": 0.1, "xtc_threshold": 0.3,
    }  # fmt: skip
    request = {"prompt": candidate.prompt, "sampling": sampling, "max_tokens": 60, "ignore_eos": True}
    plain = paired.generate(**request)
    answer = paired.generate(**request, draft={"exact_tokens": 5})
    assert answer.result["acceptance"]["accepted"] > 0
    assert answer.tokens == plain.tokens


@pytest.mark.parametrize("sampling", [{"temperature": 0}, SEEDED], ids=["greedy", "seeded"])
def test_a_grammar_is_kept_to_and_a_draft_changes_nothing(paired, candidate, sampling):
    properties = {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": False}
    request = {"prompt": candidate.prompt, "sampling": sampling, "grammar": {"json_schema": schema}, "max_tokens": 300}
    plain = paired.generate(**request)
    assert plain.result["stop_reason"] == "eosFound"
    assert set(json.loads(plain.text)) == {"a", "b"}
    answer = paired.generate(**request, draft={"exact_tokens": 3})
    assert answer.tokens == plain.tokens


def _mamba(folder, tokenizer):
    """A tiny recurrent model of zeros with the tokenizer of another model."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    config = {
        "model_type": "mamba", "vocab_size": 4096, "hidden_size": 8, "intermediate_size": 16, "state_size": 4,
        "num_hidden_layers": 1, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    mixer = "backbone.layers.0.mixer."
    shapes = {
        "backbone.embeddings.weight": [4096, 8], "backbone.norm_f.weight": [8], "backbone.layers.0.norm.weight": [8],
        f"{mixer}in_proj.weight": [32, 8], f"{mixer}out_proj.weight": [8, 16], f"{mixer}x_proj.weight": [10, 16],
        f"{mixer}dt_proj.weight": [16, 2], f"{mixer}dt_proj.bias": [16], f"{mixer}conv1d.weight": [16, 4, 1],
        f"{mixer}conv1d.bias": [16], f"{mixer}A_log": [16, 4], f"{mixer}D": [16],
    }  # fmt: skip
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for n in shape:
            size *= n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(end))
    return folder
