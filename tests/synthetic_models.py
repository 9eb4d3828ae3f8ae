"""GGUF models of several architectures with random weights, of which llama.cpp can make a context.

Their vocabulary is `none`: numbers without texts. They exist to see what memory a shape takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_model(path: Path, arch: str, **shape: Any) -> Path:
    """Write a model of `arch`: `llama`, `gemma3`, `qwen3moe`, `mamba` or `jamba`; `shape` overrides `_SHAPE`."""
    writer = gguf.GGUFWriter(path, arch=arch)
    model = _Model(writer, {**_SHAPE, **shape})
    getattr(model, arch)()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_SHAPE = {
    "vocab": 2000,
    "layers": 4,
    "embd": 256,
    "ff": 512,
    "heads": 8,
    "heads_kv": 2,
    "head_dim": 32,
    "context": 4096,
    "window": 256,
    "inner": 512,
    "state": 16,
    "dt_rank": 16,
    "recurrent": (0, 1, 3),
    "experts": 8,
    "experts_used": 2,
    "expert_ff": 384,
    "quantized": False,
}


class _Model:
    def __init__(self, writer: gguf.GGUFWriter, shape: dict[str, Any]) -> None:
        self.w = writer
        self.s = shape
        self.random = np.random.default_rng(1)
        writer.add_context_length(shape["context"])
        writer.add_embedding_length(shape["embd"])
        writer.add_block_count(shape["layers"])
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(shape["vocab"])
        self.tensor("token_embd.weight", shape["vocab"], shape["embd"])
        self.tensor("output_norm.weight", shape["embd"])

    def llama(self) -> None:
        self.attention_keys(self.s["heads_kv"])
        self.tensor("output.weight", self.s["vocab"], self.s["embd"])
        for i in range(self.s["layers"]):
            self.attention(i)
            self.ffn(i)

    def gemma3(self) -> None:
        self.attention_keys(self.s["heads_kv"])
        self.w.add_sliding_window(self.s["window"])
        for i in range(self.s["layers"]):
            self.attention(i)
            self.ffn(i)
            for name in ("attn_q_norm", "attn_k_norm"):
                self.tensor(f"blk.{i}.{name}.weight", self.s["head_dim"])
            for name in ("post_attention_norm", "post_ffw_norm"):
                self.tensor(f"blk.{i}.{name}.weight", self.s["embd"])

    def qwen3moe(self) -> None:
        self.attention_keys(self.s["heads_kv"])
        experts, ff = self.s["experts"], self.s["expert_ff"]
        self.w.add_expert_count(experts)
        self.w.add_expert_used_count(self.s["experts_used"])
        self.w.add_expert_feed_forward_length(ff)
        self.tensor("output.weight", self.s["vocab"], self.s["embd"])
        for i in range(self.s["layers"]):
            self.attention(i)
            for name in ("attn_q_norm", "attn_k_norm"):
                self.tensor(f"blk.{i}.{name}.weight", self.s["head_dim"])
            self.tensor(f"blk.{i}.ffn_norm.weight", self.s["embd"])
            self.tensor(f"blk.{i}.ffn_gate_inp.weight", experts, self.s["embd"], floats=True)
            self.tensor(f"blk.{i}.ffn_gate_exps.weight", experts, ff, self.s["embd"])
            self.tensor(f"blk.{i}.ffn_up_exps.weight", experts, ff, self.s["embd"])
            self.tensor(f"blk.{i}.ffn_down_exps.weight", experts, self.s["embd"], ff)

    def mamba(self) -> None:
        self.recurrent_keys()
        for i in range(self.s["layers"]):
            self.recurrent(i)

    def jamba(self) -> None:
        recurrent = self.s["recurrent"]
        self.attention_keys([0 if i in recurrent else self.s["heads_kv"] for i in range(self.s["layers"])])
        self.recurrent_keys()
        for i in range(self.s["layers"]):
            if i in recurrent:
                self.recurrent(i)
                for name, width in (("dt", self.s["dt_rank"]), ("b", self.s["state"]), ("c", self.s["state"])):
                    self.tensor(f"blk.{i}.ssm_{name}_norm.weight", width)
            else:
                self.attention(i)
            self.ffn(i)

    # --- parts -----------------------------------------------------------------------------------------------------

    def attention_keys(self, heads_kv: int | list[int]) -> None:
        self.w.add_feed_forward_length(self.s["ff"])
        self.w.add_head_count(self.s["heads"])
        self.w.add_head_count_kv(heads_kv)
        self.w.add_key_length(self.s["head_dim"])
        self.w.add_value_length(self.s["head_dim"])
        self.w.add_rope_dimension_count(self.s["head_dim"])
        self.w.add_layer_norm_rms_eps(1e-5)

    def recurrent_keys(self) -> None:
        self.w.add_ssm_conv_kernel(4)
        self.w.add_ssm_inner_size(self.s["inner"])
        self.w.add_ssm_state_size(self.s["state"])
        self.w.add_ssm_time_step_rank(self.s["dt_rank"])
        if self.w.arch != "jamba":
            self.w.add_feed_forward_length(0)
            self.w.add_head_count(0)
            self.w.add_layer_norm_rms_eps(1e-5)

    def attention(self, i: int) -> None:
        q, kv = self.s["heads"] * self.s["head_dim"], self.s["heads_kv"] * self.s["head_dim"]
        self.tensor(f"blk.{i}.attn_norm.weight", self.s["embd"])
        self.tensor(f"blk.{i}.attn_q.weight", q, self.s["embd"])
        self.tensor(f"blk.{i}.attn_k.weight", kv, self.s["embd"])
        self.tensor(f"blk.{i}.attn_v.weight", kv, self.s["embd"])
        self.tensor(f"blk.{i}.attn_output.weight", self.s["embd"], q)

    def ffn(self, i: int) -> None:
        self.tensor(f"blk.{i}.ffn_norm.weight", self.s["embd"])
        self.tensor(f"blk.{i}.ffn_gate.weight", self.s["ff"], self.s["embd"])
        self.tensor(f"blk.{i}.ffn_up.weight", self.s["ff"], self.s["embd"])
        self.tensor(f"blk.{i}.ffn_down.weight", self.s["embd"], self.s["ff"])

    def recurrent(self, i: int) -> None:
        embd, inner, state, rank = (self.s[name] for name in ("embd", "inner", "state", "dt_rank"))
        self.tensor(f"blk.{i}.attn_norm.weight", embd)
        self.tensor(f"blk.{i}.ssm_in.weight", 2 * inner, embd)
        self.tensor(f"blk.{i}.ssm_conv1d.weight", inner, 4, floats=True)
        self.tensor(f"blk.{i}.ssm_conv1d.bias", inner)
        self.tensor(f"blk.{i}.ssm_x.weight", rank + 2 * state, inner)
        self.tensor(f"blk.{i}.ssm_dt.weight", inner, rank)
        self.tensor(f"blk.{i}.ssm_dt.bias", inner)
        self.tensor(f"blk.{i}.ssm_a", inner, state, floats=True)
        self.tensor(f"blk.{i}.ssm_d", inner)
        self.tensor(f"blk.{i}.ssm_out.weight", embd, inner)

    def tensor(self, name: str, *shape: int, floats: bool = False) -> None:
        data = self.random.normal(0, 0.02, shape).astype(np.float32)
        if len(shape) == 1 or floats:
            self.w.add_tensor(name, data)
        elif self.s["quantized"] and shape[-1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            self.w.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            self.w.add_tensor(name, data.astype(np.float16))
