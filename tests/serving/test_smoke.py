"""The smoke test tells a worker that works from one that does not, and quotes what it said."""

import asyncio
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from paceline import plugins
from paceline.engine import python_worker
from paceline.errors import SmokeTestError
from paceline.serving.client import WorkerClient
from paceline.serving.generation import GenerateParams, Sampling
from paceline.serving.launcher import LocalLauncher
from paceline.serving.samples import Sample, sample_for
from paceline.serving.smoke import smoke_test
from paceline.types import GpuRequirement, WorkerSpec

ECHO = Path(__file__).parents[1] / "thirdparty" / "paceline-echo" / "src" / "paceline_echo" / "_worker"
SAYS_ITS_DEVICES = """
import json, sys
devices = json.loads(sys.argv[1])
for line in sys.stdin:
    result = {"protocol": 1, "engine": "e", "version": "1", "features": [], "devices": devices, "slots": 1}
    print(json.dumps({"jsonrpc": "2.0", "id": json.loads(line)["id"], "result": result}), flush=True)
"""


@pytest.fixture
def echo():
    return python_worker(sys.executable, "paceline_echo_worker", ECHO)


@pytest.fixture
def sample(cage, line):
    """A parrot, and what it must say: the line's first eight words are the first eight of its vocabulary."""
    cage.add("parrot")
    return Sample(cage.model("parrot").path, line, tuple(range(257, 265)))


def test_a_worker_that_works_tells_what_it_is(echo, sample):
    info = smoke_test(echo, sample=sample)
    assert (info.engine, info.protocol) == ("echo", 1)
    assert "generate" in info.features
    assert info.devices


def test_a_worker_that_crashes_on_its_first_token_is_found_out(cage, echo, sample):
    cage.add("ill", faults=[{"at": 1, "do": "signal", "value": "SIGILL"}])
    with pytest.raises(SmokeTestError, match="SIGILL"):
        smoke_test(echo, sample=replace(sample, path=cage.model("ill").path))


@pytest.mark.parametrize(
    ("prompt", "made"),
    [("To be or not to be, that was the", [*range(257, 264), 33]), ("To be or not to be,", [*range(257, 263), 0])],
    ids=["another token", "too few"],
)
def test_a_worker_that_computes_wrongly_is_found_out(echo, sample, prompt, made):
    with pytest.raises(SmokeTestError) as caught:
        smoke_test(echo, sample=replace(sample, prompt=prompt))
    right = list(sample.tokens)
    assert f"of the sample model parrot.echo it makes the tokens {made}, where {right} are right" in str(caught.value)
    assert "paceline runtime survey" in caught.value.help


@pytest.mark.parametrize("kind", ["gpu", "igpu"])
def test_a_runtime_for_gpus_must_see_one(kind):
    def listing(*devices):
        text = json.dumps([{"name": name, "kind": kind} for name, kind in devices])
        return WorkerSpec((sys.executable, "-I", "-c", SAYS_ITS_DEVICES, text))

    gpu = GpuRequirement("nvidia")
    assert smoke_test(listing(("CPU", "cpu"), ("GPU0", kind)), gpu=gpu).devices[1].kind == kind
    with pytest.raises(SmokeTestError, match=r"needs a GPU \(nvidia\).* it lists CPU \(cpu\), BLAS \(accelerator\)"):
        smoke_test(listing(("CPU", "cpu"), ("BLAS", "accelerator")), gpu=gpu)
    with pytest.raises(SmokeTestError, match="it lists nothing"):
        smoke_test(listing(), gpu=gpu)
    assert smoke_test(listing(("CPU", "cpu"))).devices[0].name == "CPU"


@pytest.mark.parametrize(
    ("code", "message", "quoted"),
    [
        ("import absent_engine_package", "exit code 1", "absent_engine_package"),
        ("import sys; print('libfoo.so.1: cannot open', file=sys.stderr); sys.exit(9)", "exit code 9", "libfoo.so.1"),
        ("print('hello')", "no frame", None),
    ],
)
def test_a_worker_that_does_not_start_is_quoted(code, message, quoted):
    with pytest.raises(SmokeTestError, match=message) as caught:
        smoke_test(WorkerSpec((sys.executable, "-I", "-c", code)))
    if quoted:
        assert quoted in caught.value.help


def test_a_worker_that_is_silent_has_its_time():
    spec = WorkerSpec((sys.executable, "-I", "-c", "import sys; sys.stdin.read()"))
    with pytest.raises(SmokeTestError, match="no answer within"):
        smoke_test(spec, timeout_s=0.5)


def test_a_program_that_is_not_there_is_said():
    with pytest.raises(SmokeTestError, match="cannot be started"):
        smoke_test(WorkerSpec(("/nonexistent/python",)))


def test_there_is_a_sample_for_each_format_of_ours():
    gguf, mlx = sample_for(("gguf",)), sample_for(("mlx", "other"))
    assert (gguf.path.suffix, mlx.path.is_dir()) == (".gguf", True)
    assert gguf.tokens == mlx.tokens
    assert len(gguf.tokens) == 8
    assert sample_for(("other",)) is None


@pytest.mark.runtime
@pytest.mark.parametrize("engine", ["llama.cpp", "mlx"])
def test_a_real_engine_makes_the_expected_tokens_and_others_of_damaged_weights(engine, request, tmp_path):
    runtime = request.getfixturevalue("llama_cpp_runtime" if engine == "llama.cpp" else "mlx_runtime")
    spec = plugins.load().engine(engine).worker(runtime)
    sample = sample_for(runtime.formats)
    assert engine.startswith(smoke_test(spec, sample=sample).engine)

    with pytest.raises(SmokeTestError, match="computes wrongly here") as caught:
        smoke_test(spec, sample=replace(sample, path=_damaged(sample.path, tmp_path)))
    assert str(list(sample.tokens)) in str(caught.value)


def _damaged(model: Path, folder: Path) -> Path:
    """A copy whose last third is noise, as a kernel that computes wrongly makes of it."""
    copy = folder / model.name
    (shutil.copytree if model.is_dir() else shutil.copyfile)(model, copy)
    weights = copy / "model.safetensors" if model.is_dir() else copy
    data = bytearray(weights.read_bytes())
    start = len(data) // 3 * 2
    data[start:] = reversed(data[start:])
    weights.write_bytes(data)
    return copy


@pytest.mark.runtime
@pytest.mark.parametrize("engine", ["llama.cpp", "mlx"])
def test_the_expected_tokens_win_by_far(engine, request):
    """What `Sample.tokens` says of the next likeliest, over the real engines."""
    runtime = request.getfixturevalue("llama_cpp_runtime" if engine == "llama.cpp" else "mlx_runtime")
    sample = sample_for(runtime.formats)
    pieces = asyncio.run(_with_alternatives(plugins.load().engine(engine).worker(runtime), sample))
    assert tuple(piece.token for piece in pieces) == sample.tokens
    assert min(math.exp(p.logprob.top[0].logprob - p.logprob.top[1].logprob) for p in pieces) > 11


async def _with_alternatives(spec: WorkerSpec, sample: Sample):
    client = WorkerClient(await LocalLauncher().launch(spec))
    try:
        await client.initialize()
        await client.call("load", {"role": "main", "path": str(sample.path)})
        params = GenerateParams(sample.prompt, len(sample.tokens), sampling=Sampling(temperature=0.0), logprobs=2)
        return [p for item in [i async for i in await client.begin(params)] for p in getattr(item, "pieces", ())]
    finally:
        await client.close()
