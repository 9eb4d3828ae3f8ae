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


def test_beyond_a_sliding_window_the_draft_sits_out_and_the_output_is_the_same(worker, variant, candidate):
    window = variant("config.json", layer_types=["sliding_attention", "full_attention"] * 4, sliding_window=64)
    worker.call("load", role="main", path=str(window))
    worker.call("load", role="draft", path=str(candidate.draft))
    request = {"prompt": candidate.prompt, "sampling": SEEDED, "max_tokens": 80, "ignore_eos": True}
    plain = worker.generate(**request)
    answer = worker.generate(**request, draft={"exact_tokens": 4})
    assert answer.tokens == plain.tokens
    record = answer.result["acceptance"]
    assert record["accepted"] == answer.drafted > 0
    assert record["drafted"] == record["accepted"] + record["rejected"] + record["ignored"]
    assert "sliding window" in answer.result["draft_skipped"]


def test_a_conversation_goes_on_where_it_was_also_beyond_a_sliding_window(worker, variant, candidate):
    worker.call(
        "load",
        role="main",
        path=str(variant("config.json", layer_types=["sliding_attention"] * 7 + ["full_attention"], sliding_window=64)),
    )
    first = worker.call("tokenize", text=candidate.prompt)["tokens"]
    said = worker.generate(prompt=first, sampling=SEEDED, max_tokens=60, ignore_eos=True).tokens
    request = {"prompt": [*first, *said, *first], "sampling": SEEDED, "max_tokens": 8}
    warm = worker.generate(**request)
    assert warm.result["cached_tokens"] == len(first) + len(said) - 1
    cold = worker.generate(**request)
    assert cold.result["cached_tokens"] == 0
    assert warm.tokens == cold.tokens


def test_a_recurrent_model_runs_without_a_draft(worker, candidate, tmp_path, refused):
    worker.call("load", role="main", path=str(_mamba(tmp_path / "mamba", candidate.main)))
    with pytest.raises(refused, match="rolled back") as error:
        worker.call("load", role="draft", path=str(candidate.draft))
    assert error.value.kind == "unsupported"
    answer = worker.generate(prompt=candidate.prompt, sampling={"temperature": 0}, max_tokens=6, draft={})
    assert answer.result["completion_tokens"] == 6
    assert answer.result["draft_skipped"]
    worker.call("load", role="main", path=str(candidate.main))
    with pytest.raises(refused, match="rolled back"):
        worker.call("load", role="draft", path=str(tmp_path / "mamba"))


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
    }  # fmt: skip
    request = {"prompt": candidate.prompt, "sampling": sampling, "max_tokens": 60, "ignore_eos": True}
    plain = paired.generate(**request)
    answer = paired.generate(**request, draft={"exact_tokens": 5})
    assert answer.result["acceptance"]["accepted"] > 0
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
