"""LoRA adapters on llama.cpp: what they add to the weights is what the arithmetic says, and nothing at scale 0."""

import gguf
import numpy as np
import pytest

from paceline import paths, plugins

pytestmark = pytest.mark.runtime

ADAPTED = [f"blk.{layer}.{part}.weight" for layer in range(8) for part in ("attn_q", "attn_v", "ffn_down")]
RANK, ALPHA = 4, 8.0
PROMPTS = ["def close(", "class Reader:\n    def ", "import os\n\n\ndef is_even("]


@pytest.fixture(scope="module")
def sample():
    return gguf.GGUFReader(paths.samples() / "paceline-coder-7m-q8_0.gguf")


@pytest.fixture(scope="module")
def weights(sample):
    """The sample main model's weights in 32 bits, rows first."""
    return {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type)) for t in sample.tensors}


@pytest.fixture(scope="module")
def changes(weights):
    """Two adapters: name of a tensor -> (A, B)."""
    random = np.random.default_rng(7)

    def adapter():
        return {
            name: (
                random.normal(0, 0.05, (RANK, weights[name].shape[1])).astype(np.float32),
                random.normal(0, 0.05, (weights[name].shape[0], RANK)).astype(np.float32),
            )
            for name in ADAPTED
        }

    return adapter(), adapter()


@pytest.fixture(scope="module")
def files(tmp_path_factory, sample, weights, changes):
    """A folder with the base model, the adapters, and the model that both adapters together should make."""
    folder = tmp_path_factory.mktemp("lora")
    write_model(folder / "base.gguf", sample, weights)
    merged = {
        name: weight
        + sum(s * ALPHA / RANK * b @ a for s, (a, b) in zip((1.5, -0.5), (c[name] for c in changes), strict=True))
        if name in ADAPTED
        else weight
        for name, weight in weights.items()
    }
    write_model(folder / "merged.gguf", sample, merged)
    for i, change in enumerate(changes):
        write_adapter(folder / f"adapter{i}.gguf", "llama", change)
    return folder


@pytest.fixture
def llama(wires, llama_cpp_runtime):
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)
    wire = wires(spec.argv, dict(spec.env))
    wire.call("initialize", protocol=1)
    return wire


def answers(wire, path, *adapters):
    options = {"lora": [{"path": str(file), "scale": scale} for file, scale in adapters]} if adapters else {}
    loaded = wire.call("load", role="main", path=str(path), options=options)
    greedy = {"max_tokens": 24, "ignore_eos": True, "sampling": {"temperature": 0}}
    return loaded, [wire.generate(prompt=prompt, **greedy).tokens for prompt in PROMPTS]


def test_adapters_change_the_output_as_computed(llama, files):
    base, plain = answers(llama, files / "base.gguf")
    adapted, together = answers(
        llama, files / "base.gguf", (files / "adapter0.gguf", 1.5), (files / "adapter1.gguf", -0.5)
    )
    _, expected = answers(llama, files / "merged.gguf")
    assert together == expected
    assert together != plain
    assert adapted["memory"]["weights_bytes"] > base["memory"]["weights_bytes"]
    _, without = answers(llama, files / "base.gguf", (files / "adapter0.gguf", 0), (files / "adapter1.gguf", 0))
    assert without == plain


def test_an_adapter_works_beside_a_draft(llama, files):
    _, plain = answers(llama, files / "base.gguf", (files / "adapter0.gguf", 1.5))
    llama.call("load", role="draft", path=str(paths.samples() / "paceline-coder-3m-q8_0.gguf"))
    for prompt, tokens in zip(PROMPTS, plain, strict=True):
        request = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True, "sampling": {"temperature": 0}}
        answer = llama.generate(**request, draft={"exact_tokens": 3})
        assert answer.tokens == tokens
        assert answer.result["acceptance"]["drafted"] > 0


def test_what_is_no_adapter_of_the_model_is_refused(llama, files, changes, weights, tmp_path, refused):
    first = dict(list(changes[0].items())[:1])
    write_adapter(tmp_path / "other.gguf", "gemma2", first)
    write_adapter(tmp_path / "stranger.gguf", "llama", {"blk.99.attn_q.weight": first[ADAPTED[0]]})
    write_adapter(
        tmp_path / "narrow.gguf", "llama", {ADAPTED[0]: (np.ones((RANK, 32), np.float32), first[ADAPTED[0]][1])}
    )
    write_adapter(tmp_path / "invoked.gguf", "llama", first, invocation=[5, 6])
    reasons = {
        "absent": "failed to open",
        "base": "expect general.type to be 'adapter'",
        "other": "arch mismatch",
        "stranger": "does not exist in base model",
        "narrow": "incorrect shape",
        "invoked": "tokens that invoke it",
    }
    for name, reason in reasons.items():
        path = files / "base.gguf" if name == "base" else tmp_path / f"{name}.gguf"
        with pytest.raises(refused, match=reason) as error:
            llama.call("load", role="main", path=str(files / "base.gguf"), options={"lora": [{"path": str(path)}]})
        assert (error.value.kind, error.value.data["param"]) == ("invalid_request", "options.lora")
        assert str(path) in str(error.value)
    assert answers(llama, files / "base.gguf")[0]["context_length"] > 0


def test_an_adapter_that_makes_no_sense_is_named(llama, files, refused):
    for lora in ("a.gguf", ["a.gguf"], [{"scale": 1}], [{"path": "a", "scale": "1"}], [{"path": "a", "weight": 1}]):
        with pytest.raises(refused) as error:
            llama.call("load", role="main", path=str(files / "base.gguf"), options={"lora": lora})
        assert (error.value.kind, error.value.data["param"]) == ("invalid_request", "options.lora")


def write_model(path, like, weights):
    """A GGUF file with the metadata of `like` and these weights in 32 bits."""
    writer = gguf.GGUFWriter(path, arch="llama")
    for field in like.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, inner[0] if inner else None)
    for name, weight in weights.items():
        writer.add_tensor(name, weight.astype(np.float32))
    finish(writer)


def write_adapter(path, arch, change, invocation=None):
    writer = gguf.GGUFWriter(path, arch=arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    if invocation:
        writer.add_key_value(
            "adapter.alora.invocation_tokens", invocation, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
        )
    for name, (a, b) in change.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
