"""Makes tiny MLX folders of random weights: `make_mlx_models.py OUT TOKENIZER`, run by a Python that has mlx-lm."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

COMMON = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
LLAMA = COMMON | {"model_type": "llama"}
WINDOW = COMMON | {
    "model_type": "gemma3_text",
    "num_hidden_layers": 3,
    "sliding_window": 16,
    "sliding_window_pattern": 3,
    "query_pre_attn_scalar": 32,
    "rope_local_base_freq": 10000.0,
    "rope_global_base_freq": 1000000.0,
}
RECURRENT = {
    "model_type": "mamba2",
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "head_dim": 16,
    "n_groups": 1,
    "state_size": 8,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-5,
    "time_step_limit": [0.0, 100.0],
    "time_step_rank": 4,
    "max_position_embeddings": 2048,
}
HYBRID = COMMON | {
    "model_type": "falcon_h1",
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
}
MODELS = {
    "16-bit": (LLAMA, None),
    "8-bit": (LLAMA, 8),
    "4-bit": (LLAMA, 4),
    "window": (WINDOW, None),
    "recurrent": (RECURRENT, None),
    "hybrid": (HYBRID, None),
}


QWEN3 = COMMON | {"model_type": "qwen3"}
EMBEDDERS = {
    "last": (QWEN3, "last", {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}),
    "mean": (LLAMA | {"tie_word_embeddings": False}, "mean", {"pooling_mode_mean_tokens": True}),
    "cls": (WINDOW, "cls", {"pooling_mode": "cls"}),
    "two": (QWEN3, None, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}),
    "headless": (RECURRENT, None, {"pooling_mode": "mean"}),
}
"""Name -> config, what its states are pooled by (None: not loaded), and 1_Pooling/config.json."""


def make_embedder(folder: Path, config: dict, pooling: dict, tokenizer: Path) -> None:
    """As sentence-transformers save it: weights of the inner model alone, without its name."""
    make(folder, config, None, tokenizer)
    weights = mx.load(str(folder / "model.safetensors"))
    bare = {name.removeprefix("model."): array for name, array in weights.items() if not name.startswith("lm_head.")}
    mx.save_safetensors(str(folder / "model.safetensors"), bare)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))


def make(folder: Path, config: dict, bits: int | None, tokenizer: Path) -> None:
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(3)
    net = module.Model(module.ModelArgs.from_dict(config))
    net.set_dtype(mx.float16)
    if bits is not None:
        nn.quantize(net, 64, bits)
        config = config | {"quantization": {"group_size": 64, "bits": bits}}
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(net.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(tokenizer / name, folder / name)


if __name__ == "__main__":
    for name, (config, bits) in MODELS.items():
        make(Path(sys.argv[1], name), config, bits, Path(sys.argv[2]))
    for name, (config, _, pooling) in EMBEDDERS.items():
        make_embedder(Path(sys.argv[1], name), config, pooling, Path(sys.argv[2]))
