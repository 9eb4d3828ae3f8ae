"""The MLX folders made of the GGUF samples are what they would be had they been converted from the originals."""

import json
import struct

import numpy as np
import pytest

from paceline.errors import UsageError


@pytest.fixture(scope="session")
def mlx_pair(bench):
    return bench("mlx_pair")


@pytest.fixture(scope="session")
def shape(bench):
    """Four times as wide, with other groups of heads: 30 million parameters."""
    return bench("enlarge").Shape(hidden=1024, layers=8, heads=16, kv_heads=4, feed_forward=768)


def tensors(folder):
    data = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    found = {}
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        assert entry["dtype"] == "F16"
        found[name] = np.frombuffer(data[start:end], "<f2").reshape(entry["shape"])
    return found


def test_it_is_the_folder_that_the_gguf_file_was_made_of(mlx_pair, shared, tmp_path):
    mlx_pair.write_folder(shared / "models" / "paceline-coder-7m-f16.gguf", tmp_path / "made")
    original = shared / "models" / "mlx" / "paceline-coder-7m-fp16"
    made, wanted = tensors(tmp_path / "made"), tensors(original)
    assert made.keys() == wanted.keys()
    assert [name for name in made if not np.array_equal(made[name], wanted[name])] == []
    files = [json.loads((folder / "tokenizer.json").read_text("utf-8")) for folder in (tmp_path / "made", original)]
    assert files[0] == files[1]
    config, wanted = (json.loads((f / "config.json").read_text("utf-8")) for f in (tmp_path / "made", original))
    assert config.pop("rms_norm_eps") == pytest.approx(wanted.pop("rms_norm_eps"))
    assert config == wanted


@pytest.mark.runtime
def test_enlarged_it_says_the_same_and_mlx_quantizes_it(mlx_pair, bench, shape, mlx_runtime, tmp_path):
    heavy = bench("heavy_pair")
    mlx_pair.write_folder(heavy.sample_main(), tmp_path / "small")
    mlx_pair.write_folder(heavy.sample_main(), tmp_path / "large", shape)
    asked = ["def close(self"]
    said = [heavy.greedy_tokens(tmp_path / name, asked, 6, runtime=mlx_runtime) for name in ("small", "large")]
    assert said[0] == said[1]
    mlx_pair.quantize(tmp_path / "large", tmp_path / "quantized", 8, mlx_runtime)
    assert json.loads((tmp_path / "quantized" / "config.json").read_text())["quantization"]["bits"] == 8


def test_the_bad_draft_keeps_nothing_but_the_norms(mlx_pair, bench, tmp_path):
    source = bench("heavy_pair").sample_draft()
    mlx_pair.write_folder(source, tmp_path / "good")
    mlx_pair.write_folder(source, tmp_path / "bad", noise=True)
    good, bad = tensors(tmp_path / "good"), tensors(tmp_path / "bad")
    assert {name: t.shape for name, t in good.items()} == {name: t.shape for name, t in bad.items()}
    assert all(np.array_equal(good[name], bad[name]) == (good[name].ndim == 1) for name in good)


def test_a_tokenizer_of_another_kind_is_refused(mlx_pair, shared, tmp_path):
    with pytest.raises(UsageError, match="llama architecture"):
        mlx_pair.write_folder(shared / "models" / "all-minilm-l6-v2-q8_0.gguf", tmp_path / "none")
    assert not (tmp_path / "none").exists()
