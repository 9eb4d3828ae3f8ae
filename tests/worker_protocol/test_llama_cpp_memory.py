"""What a load is estimated to take, beside what llama.cpp says it took."""

import importlib.util
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from paceline import LoadConfig, LoraAdapter, Model, ModelFacts, ModelKind, Runtime, paths, plugins, worker_root
from paceline.formats.gguf_format import GgufFormat

pytestmark = pytest.mark.runtime

LLAMA = {"vocab": 2000, "embd": 256, "ff": 1024, "heads": 8, "heads_kv": 2}
WIDE = {"embd": 512, "ff": 2048, "heads": 16, "heads_kv": 4, "quantized": True}
MODELS = {
    "llama": ("llama", LLAMA),
    "llama-all-heads": ("llama", {**LLAMA, "heads_kv": 8, "vocab": 32000}),
    "llama-wide": ("llama", WIDE),
    "gemma3": ("gemma3", {"layers": 8, "ff": 1536, "vocab": 16000}),
    "moe": ("qwen3moe", {"experts_used": 4}),
    "moe-few": ("qwen3moe", {"experts_used": 2, "expert_ff": 768, "experts": 16, "embd": 512}),
    "mamba": ("mamba", {"layers": 6}),
    "llama-many-words": ("llama", {**LLAMA, "vocab": 150_000, "heads_kv": 4}),
    "jamba": ("jamba", {"layers": 6, "recurrent": (0, 1, 2, 4)}),
}
CONFIGS = [
    LoadConfig(),
    LoadConfig(context_length=300, parallel=3),
    LoadConfig(context_length=4096, parallel=1, cache_type_k="q8_0", cache_type_v="q8_0"),
    LoadConfig(context_length=2048, parallel=4, cache_type_k="q4_0"),
    LoadConfig(context_length=1024, eval_batch_size=256),
    LoadConfig(context_length=1024, parallel=2, flash_attention=False),
    LoadConfig(context_length=16384, parallel=1, eval_batch_size=2048),
    LoadConfig(context_length=8192, parallel=2, flash_attention=False),
]


READINGS = [
    LoadConfig(context_length=1024),
    LoadConfig(context_length=300),
    LoadConfig(context_length=2048, eval_batch_size=128),
    LoadConfig(context_length=1024, eval_batch_size=100),
    LoadConfig(context_length=1024, cache_type_k="q8_0"),
    LoadConfig(context_length=1024, flash_attention=False),
]

CPU = Runtime("llama.cpp", "0.3.36-1", "linux-x86_64-cpu", ("gguf",), (), Path(), Path())

COMPUTE = 0.06
"""How far the buffers that a model computes in may be from what is told, as a part of them."""

TINY_LOG = 2**20 / 100  # llama.cpp's log has hundredths of a MiB, for each buffer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A function from a name in `MODELS`, or of a sample, to its file."""
    spec = importlib.util.spec_from_file_location("synthetic_models", Path(__file__).parents[1] / "synthetic_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("synthetic")

    def path(name):
        if name not in MODELS:
            return paths.samples() / name
        arch, shape = MODELS[name]
        return module.write_model(folder / f"{name}.gguf", arch, **shape)

    return path


@pytest.fixture
def both(wires, llama_cpp_runtime):
    """A function that loads a model: what the worker answers, and what was estimated."""
    engine = plugins.load().engine("llama.cpp")
    spec = engine.worker(llama_cpp_runtime)
    wire = wires(spec.argv, dict(spec.env))
    wire.call("initialize", protocol=1)

    def load(path, config, *, draft=False):
        model = read(path)
        params = {"role": "draft" if draft else "main", "path": str(path), "options": config.options()}
        if model.facts.kind is ModelKind.EMBEDDINGS:
            params["options"]["embedding"] = True
        if draft:
            params["options"] = config.draft_options()
        elif config.context_length is not None:
            params["context_length"] = config.context_length
        return wire.call("load", **params), engine.estimate(model, config, runtime=llama_cpp_runtime, draft=draft)

    return load


def read(path):
    return Model(path.stem, "gguf", path, "test", GgufFormat().read(path))


def agree(loaded, estimate):
    took = loaded["memory"]
    assert (estimate.context_length, estimate.parallel) == (loaded["context_length"], loaded["slots"])
    assert estimate.cache == pytest.approx(took["cache_bytes"], abs=TINY_LOG)
    assert estimate.compute == pytest.approx(took["compute_bytes"], rel=COMPUTE)
    assert estimate.total - estimate.reading == pytest.approx(sum(took.values()), rel=0.05)


@pytest.mark.parametrize("name", [*MODELS, "paceline-coder-7m-q8_0.gguf", "paceline-coder-3m-q8_0.gguf"])
def test_the_estimate_is_what_llama_cpp_takes(both, models, name):
    path = models(name)
    for config in CONFIGS:
        loaded, estimate = both(path, config)
        assert estimate.weights == loaded["memory"]["weights_bytes"]
        assert estimate.on_gpu == 0
        agree(loaded, estimate)


READ_LONG_PROMPT = """
import json, sys
from paceline_llama_cpp_worker import binding
from paceline_llama_cpp_worker.options import ContextOptions, Placement
from paceline_llama_cpp_worker.reading import Reader

binding.start()
model = binding.Model(sys.argv[1], placement=Placement(), progress=lambda fraction: None)
for config in json.loads(sys.argv[2]):
    length, batch = config["context_length"], config.get("eval_batch_size", 512)
    options = ContextOptions(
        flash_attention=config.get("flash_attention"), type_k=binding.CACHE_TYPES.get(config.get("cache_type_k"))
    )
    context = binding.Context(model, n_ctx=length, n_seq=1, n_batch=512, n_outputs=65, threads=2, options=options)
    reader = Reader(context, model, options=options, batch=batch, threads=2)
    prompt = [1] * (length - 1)
    took = 0
    for lane, tokens in enumerate((prompt, prompt[: len(prompt) // 4])):
        if reader.takes(tokens, 0):
            assert reader.begin(lane, tokens, 0)
            memory = binding.taken(model)
            took += memory["cache_bytes"] + memory["compute_bytes"]
            if not lane:
                assert not reader.begin(2, prompt[: len(prompt) // 4 + 1], 0)
    print(took)
    reader.close()
    context.close()
"""


@pytest.mark.parametrize("name", [*MODELS, "paceline-coder-7m-q8_0.gguf", "paceline-coder-3m-q8_0.gguf"])
def test_what_reading_a_long_prompt_takes_is_told(models, llama_cpp_runtime, name):
    path, engine = models(name), plugins.load().engine("llama.cpp")
    configs = [{"context_length": config.context_length, **config.options()} for config in READINGS]
    done = subprocess.run(
        [llama_cpp_runtime.python, "-c", READ_LONG_PROMPT, path, json.dumps(configs)],
        env={**engine.worker(llama_cpp_runtime).env, "PATH": os.environ["PATH"], "PYTHONPATH": str(worker_root())},
        check=True,
        stdout=subprocess.PIPE,
    )
    took = [int(line) for line in done.stdout.split()]
    told = [engine.estimate(read(path), config, runtime=llama_cpp_runtime).reading for config in READINGS]
    assert told == pytest.approx(took, rel=0.05, abs=2 * TINY_LOG)
    assert [bool(size) for size in took] == [name not in ("gemma3", "mamba", "jamba")] * 3 + [False] * 3


def test_nothing_is_read_apart_on_gpus_for_a_draft_or_in_a_short_context(models):
    model, engine = read(models("llama")), plugins.load().engine("llama.cpp")
    metal = replace(CPU, platform="mac-arm64-metal")
    assert engine.estimate(model, LoadConfig(), runtime=CPU).reading > 0
    assert engine.estimate(model, LoadConfig(), runtime=CPU, draft=True).reading == 0
    assert engine.estimate(model, LoadConfig(), runtime=metal).reading == 0
    assert engine.estimate(model, LoadConfig(context_length=256), runtime=CPU).reading == 0


def test_a_draft_has_its_main_model_s_context_and_a_cache_of_its_own(both, models):
    config = LoadConfig(context_length=1000, parallel=4, cache_type_k="q8_0", cache_type_v="q8_0")
    main, _ = both(models("paceline-coder-7m-q8_0.gguf"), config)
    loaded, estimate = both(models("paceline-coder-3m-q8_0.gguf"), config, draft=True)
    assert (main["slots"], main["context_length"]) == (4, 1000)
    agree(loaded, estimate)


def test_an_encoder_has_no_cache(both, shared):
    for config in (LoadConfig(), LoadConfig(context_length=2048)):
        loaded, estimate = both(shared / "models" / "all-minilm-l6-v2-q8_0.gguf", config)
        assert estimate.cache == 0
        agree(loaded, estimate)


@pytest.mark.parametrize(("layers", "there"), [(-1, 4), (99, 4), (5, 4), (3, 2), (1, 0), (0, None)])
def test_the_last_layers_go_to_the_gpu_and_the_output_is_the_last(models, layers, there):
    """`there`: layers with a cache that are on it."""
    model = read(models("llama"))
    engine = plugins.load().engine("llama.cpp-cuda")

    def estimate(**config):
        return engine.estimate(model, LoadConfig(gpu_layers=layers, **config), runtime=CPU)

    found = estimate()
    if there is None:
        assert found.on_gpu == 0
        return
    embd, ff, heads_kv = LLAMA["embd"], LLAMA["ff"], LLAMA["heads_kv"]
    layer = 2 * (2 * embd * embd + 2 * embd * heads_kv * 32 + 3 * embd * ff) + 4 * 2 * embd
    output = 2 * LLAMA["vocab"] * embd
    assert found.on_gpu == there * (layer + found.cache // 4) + output + found.compute
    assert estimate(offload_kv_cache=False).on_gpu == found.on_gpu - there * found.cache // 4
    assert found.gpus == estimate(tensor_split=(0.0, 0.0)).gpus == ()
    assert estimate(main_gpu=1).gpus == (0, found.on_gpu)
    assert estimate(tensor_split=(1.0,)).gpus == (found.on_gpu,)
    first = (there + 2) // 2  # of those layers and the output, half and what is left over
    whole, rest = layer + found.cache // 4, output + found.compute
    halves = (first * whole, 0, (there - first) * whole + rest) if there else (rest, 0, 0)
    assert estimate(tensor_split=(2.0, 0.0, 2.0)).gpus == halves


@pytest.mark.parametrize("main_gpu", [None, 0, 2])
def test_a_draft_goes_to_one_gpu_as_a_whole(models, main_gpu):
    engine = plugins.load().engine("llama.cpp-cuda")
    config = LoadConfig(gpu_layers=0, tensor_split=(1.0, 1.0), main_gpu=main_gpu)
    found = engine.estimate(read(models("llama")), config, runtime=CPU, draft=True)
    assert found.on_gpu == found.gpus[main_gpu or 0] == sum(found.gpus) > found.weights * 0.9


def test_adapters_are_weights_too(models, tmp_path):
    adapter = tmp_path / "adapter.gguf"
    adapter.write_bytes(b"x" * 1000)
    model, engine = read(models("llama")), plugins.load().engine("llama.cpp")
    plain, adapted = (
        engine.estimate(model, config, runtime=CPU)
        for config in (LoadConfig(), LoadConfig(lora=(LoraAdapter(adapter),)))
    )
    assert adapted.weights == plain.weights + 1000


def test_a_cache_that_nobody_here_understands_is_unknown(write_gguf, tmp_path):
    keys = {"general.architecture": "deepseek4", "deepseek4.block_count": 2, "deepseek4.embedding_length": 64}
    path = write_gguf(tmp_path / "m.gguf", keys, tensors=[("token_embd.weight", (64, 100), 1)])
    model = Model("m", "gguf", path, "test", ModelFacts(ModelKind.LLM, path.stat().st_size))
    found = plugins.load().engine("llama.cpp").estimate(model, LoadConfig(), runtime=CPU)
    assert (found.cache, found.weights) == (None, 64 * 100 * 2)
    assert found.total == found.weights + found.compute


@pytest.mark.parametrize("value", [0, -1, (10, 2**63), (10, 2**64 - 1), [], [7], "many", 1.5])
def test_a_file_may_claim_anything(write_gguf, tmp_path, value):
    names = ["block_count", "embedding_length", "context_length", "attention.head_count", "feed_forward_length"]
    tensors = [("token_embd.weight", (64, 100), 1), ("blk.0.attn_k.weight", (64, 64), 1)]
    engine = plugins.load().engine("llama.cpp")
    for odd in names:
        keys = {"general.architecture": "llama", **{f"llama.{name}": 1 for name in names}, f"llama.{odd}": value}
        path = write_gguf(tmp_path / "m.gguf", keys, tensors=tensors)
        model = Model("m", "gguf", path, "test", ModelFacts(ModelKind.LLM, path.stat().st_size))
        assert engine.estimate(model, LoadConfig(), runtime=CPU).weights == 2 * 64 * (100 + 64)
