"""The enlarged model is the small model, only slower."""

import numpy as np
import pytest

from paceline import paths
from paceline.errors import UsageError
from paceline.formats.gguf import read_gguf


@pytest.fixture(scope="session")
def heavy(bench):
    return bench("heavy_pair")


@pytest.fixture(scope="session")
def shape(heavy):
    """Four times as wide, with other groups of heads and two more layers: 20 million parameters."""
    return heavy.Shape(hidden=512, layers=10, heads=8, kv_heads=2, feed_forward=1024)


@pytest.fixture(scope="session")
def enlarged(heavy, shape, tmp_path_factory):
    path = tmp_path_factory.mktemp("heavy") / "enlarged.gguf"
    heavy.enlarge(heavy.sample_main(), path, shape)
    return path


def test_its_metadata_are_those_of_the_source_in_the_new_shape(heavy, enlarged, shape):
    old, new = read_gguf(heavy.sample_main()), read_gguf(enlarged)
    assert new.tokens == old.tokens
    changed = {key for key in old.values if new.values.get(key) != old.values[key]}
    assert changed == {
        "general.name",
        "general.file_type",
        "general.quantization_version",
        "llama.embedding_length",
        "llama.block_count",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
    }
    assert new.values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5 / 2)
    shapes = {t.name: t.shape for t in new.tensors}
    assert shapes["blk.9.ffn_down.weight"] == (shape.feed_forward, shape.hidden)
    assert shapes["blk.0.attn_k.weight"] == (shape.hidden, shape.kv_heads * shape.head)


def test_what_is_added_never_writes_to_the_residual_stream(enlarged):
    import gguf

    tensors = {t.name: t.data for t in gguf.GGUFReader(enlarged).tensors}
    assert not tensors["token_embd.weight"][:, 256:].any()
    for layer in range(10):
        for name in (f"blk.{layer}.attn_output.weight", f"blk.{layer}.ffn_down.weight"):
            assert not tensors[name][256:].any()
            assert tensors[name].any() == (layer < 8)
    # Two real heads and two added ones in each group of four.
    used = tensors["blk.0.attn_output.weight"].any(axis=0).reshape(8, 64).any(axis=1)
    assert used.tolist() == [True, True, False, False] * 2
    assert np.abs(tensors["blk.9.ffn_up.weight"]).mean() > 0.01


@pytest.mark.parametrize(
    ("change", "said"), [({"heads": 16}, "32"), ({"layers": 4}, "smaller"), ({"kv_heads": 8}, "smaller")]
)
def test_a_shape_that_cannot_hold_the_model_is_refused(heavy, shape, tmp_path, change, said):
    from dataclasses import replace

    with pytest.raises(UsageError, match=said):
        heavy.enlarge(heavy.sample_main(), tmp_path / "none.gguf", replace(shape, **change))


def test_a_model_of_another_architecture_is_refused(heavy, shape, write_gguf, tmp_path):
    source = write_gguf(tmp_path / "bert.gguf", {"general.architecture": "bert"})
    with pytest.raises(UsageError, match="llama architecture"):
        heavy.enlarge(source, tmp_path / "none.gguf", shape)


def test_the_bad_draft_has_the_vocabulary_and_none_of_the_weights(heavy, tmp_path):
    import gguf

    heavy.randomize(heavy.sample_draft(), tmp_path / "bad.gguf")
    good, bad = read_gguf(heavy.sample_draft()), read_gguf(tmp_path / "bad.gguf")
    assert bad.tokens == good.tokens
    assert {t.name: t.shape for t in bad.tensors} == {t.name: t.shape for t in good.tensors}
    weights = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "bad.gguf").tensors}
    assert np.std(weights["blk.0.attn_q.weight"].astype(np.float32)) == pytest.approx(0.02, rel=0.05)


@pytest.mark.runtime
def test_greedy_tokens_are_those_of_the_small_model(heavy, bench, enlarged, llama_cpp_home, monkeypatch):
    monkeypatch.setenv("PACELINE_HOME", str(llama_cpp_home))
    prompts = [bench("prompts").chat_prompt(text) for text in bench("prompts").CODE[:24]]
    assert len(prompts) >= 20
    assert heavy.greedy_tokens(enlarged, prompts) == heavy.greedy_tokens(heavy.sample_main(), prompts)


@pytest.mark.runtime
def test_the_runtime_quantizes(heavy, llama_cpp_runtime, tmp_path):
    heavy.enlarge(heavy.sample_main(), tmp_path / "f16.gguf", heavy.Shape(512, 8, 8, 2, 768))
    heavy.quantize(tmp_path / "f16.gguf", tmp_path / "q8.gguf", "Q8_0", llama_cpp_runtime)
    assert read_gguf(tmp_path / "q8.gguf").integer("general.file_type") == heavy.QUANTIZATIONS["Q8_0"]
    assert (tmp_path / "q8.gguf").stat().st_size < 0.6 * (tmp_path / "f16.gguf").stat().st_size


def test_the_sample_pair_is_where_it_is_looked_for(heavy):
    assert {heavy.sample_main().parent, heavy.sample_draft().parent} == {paths.samples()}
    assert heavy.sample_main().is_file()
    assert heavy.sample_draft().is_file()
