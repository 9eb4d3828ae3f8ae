"""What an MLX model is estimated to take, beside what the worker's caches hold once contexts are full."""

import json
import subprocess

import pytest

from paceline import LoadConfig, Model, ModelFacts, ModelKind, plugins, worker_root

# In the runtime: make each model as its configuration says, save it, fill every row, and say what the cache holds.
FILL = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes
from paceline_mlx_worker.rows import Precision, Rows

for folder, context, slots, bits in json.loads(sys.argv[2]):
    config = json.loads(Path(folder, "config.json").read_text())
    model_class, args_class = _get_classes(config)
    net = model_class(args_class.from_dict(config))
    net.set_dtype(getattr(mx, config["torch_dtype"]))
    mx.save_safetensors(str(Path(folder, "model.safetensors")), dict(tree_flatten(net.parameters())))
    rows = Rows(net, Precision(bits, 64 if net.layers[0].self_attn.head_dim % 64 == 0 else 32) if bits else None)
    lanes = tuple(range(slots))
    for start in range(0, context, 512):
        size = min(512, context - start)
        net(mx.array([[1] * size] * slots), cache=rows.caches(lanes, (start,) * slots, size))
        mx.eval(rows.leave())
    print(json.dumps([sum(a.nbytes for _, a in tree_flatten(net.parameters())), rows.nbytes]))
"""

LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}
GEMMA = {
    **LLAMA,
    "model_type": "gemma3_text",
    "num_hidden_layers": 4,
    "head_dim": 32,
    "sliding_window": 64,
    "sliding_window_pattern": 2,
    "rope_local_base_freq": 10000.0,
    "query_pre_attn_scalar": 32,
    "rope_traditional": False,
}


def estimate(folder, config, settings):
    (folder / "config.json").write_text(json.dumps(settings))
    model = Model("m", "mlx", folder, "test", ModelFacts(ModelKind.LLM, 0))
    return plugins.load().engine("mlx").estimate(model, config, runtime=None)


CASES = {
    "llama": (LLAMA, LoadConfig(context_length=300, parallel=2), 0),
    "16 bits": ({**LLAMA, "torch_dtype": "float16"}, LoadConfig(context_length=20, parallel=3), 0),
    "8 bits": ({**LLAMA, "head_dim": 64}, LoadConfig(context_length=300, parallel=1, cache_type_k="q8_0"), 8),
    "4 bits": ({**LLAMA, "head_dim": 32}, LoadConfig(context_length=100, parallel=3, cache_type_v="q4_0"), 4),
    "beyond its window": (GEMMA, LoadConfig(context_length=1100, parallel=2), 0),
    "within its margin": (GEMMA, LoadConfig(context_length=500, parallel=1), 0),
}


@pytest.mark.runtime
def test_the_estimate_is_what_full_contexts_take(mlx_runtime, tmp_path):
    told = []
    for name, (settings, config, bits) in CASES.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(settings))
        told.append((str(folder), config.context_length, config.parallel, bits))
    command = [mlx_runtime.python, "-I", "-B", "-c", FILL, worker_root(), json.dumps(told)]
    took = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    for (name, (settings, config, _)), line in zip(CASES.items(), took, strict=True):
        found = estimate(tmp_path / name, config, settings)
        assert [found.weights, found.cache] == json.loads(line), name
        assert found.compute is None


@pytest.mark.parametrize(
    "odd",
    [
        {"num_hidden_layers": None},
        {"num_hidden_layers": 10**12},
        {"num_attention_heads": "8"},
        {"model_type": "mamba", "state_size": 16},
        {"kv_lora_rank": 512},
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        {"sliding_window": 4096},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_a_cache_that_nobody_here_understands_is_unknown(tmp_path, shared, odd):
    header = b'{"w":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    found = estimate(tmp_path, LoadConfig(), {**LLAMA, **odd})
    assert (found.weights, found.cache, found.total) == (8, None, 8)


def test_defaults_of_context_and_requests(tmp_path):
    header = b'{"w":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}'
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    found = estimate(tmp_path, LoadConfig(), LLAMA)
    assert (found.context_length, found.parallel) == (4096, 4)
    assert estimate(tmp_path, LoadConfig(context_length=512), LLAMA).parallel == 8
    assert found.cache == 2 * 2 * 3 * 2 * 16 * 4096 * 4
