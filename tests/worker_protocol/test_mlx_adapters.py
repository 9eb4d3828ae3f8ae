"""Adapters on MLX: what they add to the weights is what the arithmetic says, and a wrong folder is told why."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paceline import LoadConfig, Model, ModelFacts, ModelKind, plugins
from paceline.loading import LoraAdapter

pytestmark = [pytest.mark.runtime, pytest.mark.parametrize("candidate", ["mlx"], indirect=True)]

RANK, SCALE, LAYERS = 4, 2.0, 3
GREEDY = {"max_tokens": 24, "ignore_eos": True, "sampling": {"temperature": 0}}


@pytest.fixture(scope="module")
def folders(candidate, tmp_path_factory):
    """The sample model in 32 bits, an adapter of its last layers, and the model that this should make at 1.5."""
    folder = tmp_path_factory.mktemp("adapters")
    weights = {name: array.astype(np.float32) for name, array in read(candidate.main / "model.safetensors").items()}
    random = np.random.default_rng(5)
    adapter, merged = {}, dict(weights)
    for layer in range(8 - LAYERS, 8):
        for part in ("self_attn.q_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{part}"
            rows, columns = weights[f"{name}.weight"].shape
            a = adapter[f"{name}.lora_a"] = random.normal(0, 0.05, (columns, RANK)).astype(np.float32)
            b = adapter[f"{name}.lora_b"] = random.normal(0, 0.2, (RANK, rows)).astype(np.float32)
            merged[f"{name}.weight"] = weights[f"{name}.weight"] + 1.5 * SCALE * (a @ b).T
    for name, tensors in (("base", weights), ("merged", merged)):
        shutil.copytree(candidate.main, folder / name, copy_function=shutil.copyfile)
        write(folder / name / "model.safetensors", tensors)
    write_adapter(folder / "adapter", adapter)
    return folder


def test_an_adapter_changes_the_output_as_computed(worker, candidate, folders):
    base, plain = load(worker, candidate, folders / "base")
    adapted, changed = load(worker, candidate, folders / "base", folders / "adapter", 1.5)
    added = (folders / "adapter" / "adapters.safetensors").stat().st_size
    assert 0 < adapted["memory"]["weights_bytes"] - base["memory"]["weights_bytes"] < added
    assert changed != plain
    assert load(worker, candidate, folders / "merged")[1] == changed
    assert load(worker, candidate, folders / "base", folders / "adapter", 0.0)[1] == plain


def test_the_estimate_counts_the_adapter(worker, candidate, folders, mlx_runtime):
    loaded, _ = load(worker, candidate, folders / "base", folders / "adapter")
    config = LoadConfig(lora=(LoraAdapter(folders / "adapter"),))
    model = Model("m", "mlx", folders / "base", "test", ModelFacts(ModelKind.LLM, 0))
    told = plugins.load().engine("mlx").estimate(model, config, runtime=mlx_runtime)
    assert told is not None
    assert told.weights == loaded["memory"]["weights_bytes"]


def test_a_folder_that_is_no_adapter_is_told_why_and_the_model_stays(worker, candidate, folders, tmp_path, refused):
    _, plain = load(worker, candidate, folders / "base")
    for name in ("no-config", "no-weights", "broken", "list", "kind", "dora"):
        shutil.copytree(folders / "adapter", tmp_path / name)
    (tmp_path / "no-config" / "adapter_config.json").unlink()
    (tmp_path / "no-weights" / "adapters.safetensors").rename(tmp_path / "no-weights" / "adapter_model.safetensors")
    for name, text in {"broken": "{", "list": "[]", "kind": '{"fine_tune_type": "x"}'}.items():
        (tmp_path / name / "adapter_config.json").write_text(text)
    (tmp_path / "dora" / "adapter_config.json").write_text('{"fine_tune_type": "dora"}')
    reasons = {
        "absent": "it has no adapter_config.json",
        "no-config": "it has no adapter_config.json",
        "no-weights": "it has no adapters.safetensors",
        "broken": "adapter_config.json cannot be read",
        "list": "holds no object",
        "kind": "its fine_tune_type is 'x'",
        "dora": "only adapters of the type lora can be scaled",
    }
    for name, reason in reasons.items():
        with pytest.raises(refused, match=reason) as error:
            load(worker, candidate, folders / "base", tmp_path / name, 0.5)
        assert (error.value.kind, error.value.data["param"]) == ("invalid_request", "options.lora")
        assert str(tmp_path / name) in str(error.value)
    twice = [{"path": str(folders / "adapter")}] * 2
    with pytest.raises(refused, match="one adapter to a model, not 2"):
        worker.call("load", role="main", path=str(folders / "base"), options={"lora": twice})
    assert worker.generate(prompt=candidate.prompt, **GREEDY).tokens == plain


def test_an_adapter_of_another_model_is_told_why(worker, candidate, folders, tmp_path, refused):
    name = "model.layers.7.self_attn.q_proj"
    narrow = {f"{name}.lora_a": np.ones((32, RANK), np.float32), f"{name}.lora_b": np.ones((RANK, 256), np.float32)}
    write_adapter(tmp_path / "narrow", narrow)
    write_adapter(tmp_path / "stranger", {"model.layers.99.self_attn.q_proj.lora_a": np.ones((4, RANK), np.float32)})
    write_adapter(tmp_path / "bare", narrow, lora_parameters={"rank": RANK, "alpha": 8.0, "dropout": 0.0})
    write_adapter(tmp_path / "empty", {}, num_layers="all")
    (tmp_path / "empty" / "adapters.safetensors").write_bytes(b"")
    reasons = {
        "narrow": "does not match",
        "stranger": "not an adapter parameter",
        "bare": "scale",
        "empty": "cannot be used",
    }
    for adapter, reason in reasons.items():
        with pytest.raises(refused, match=reason) as error:
            load(worker, candidate, folders / "base", tmp_path / adapter)
        assert (error.value.kind, error.value.data["param"]) == ("invalid_request", "options.lora")
        assert str(tmp_path / adapter) in str(error.value)
    load(worker, candidate, folders / "base", folders / "adapter")


def load(worker, candidate, model, adapter=None, scale=1.0):
    """What a load says, and what the model then writes."""
    options = {} if adapter is None else {"lora": [{"path": str(adapter), "scale": scale}]}
    loaded = worker.call("load", role="main", path=str(model), context_length=512, options=options)
    return loaded, worker.generate(prompt=candidate.prompt, **GREEDY).tokens


def write_adapter(folder: Path, tensors, **changes):
    folder.mkdir()
    keys = ["self_attn.q_proj", "mlp.down_proj"]
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.1, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": LAYERS, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    write(folder / "adapters.safetensors", tensors)


KINDS = {"F16": np.float16, "F32": np.float32}


def read(path):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            found[name] = np.frombuffer(data[start + first : start + end], KINDS[entry["dtype"]]).reshape(
                entry["shape"]
            )
    return found


def write(path, tensors):
    """A safetensors file of 32-bit numbers."""
    head, at = {}, 0
    for name, array in tensors.items():
        head[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in tensors.values()))
