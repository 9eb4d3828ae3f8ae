"""The MLX worker with every kind of memory and weight: tiny models of random weights, made by mlx-lm's own classes."""

import subprocess
from pathlib import Path

import pytest

from paceline import worker_root

pytestmark = [pytest.mark.runtime, pytest.mark.parametrize("candidate", ["mlx"], indirect=True)]

KINDS = ["16-bit", "8-bit", "4-bit", "window", "recurrent", "hybrid"]
FORGETFUL = ["recurrent", "hybrid"]
LOOKUP = {"model": False, "lookup": True, "exact_tokens": 3}


@pytest.fixture(scope="module")
def models(candidate, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    script = Path(__file__).with_name("make_mlx_models.py")
    subprocess.run([candidate.argv[0], "-I", str(script), str(folder), str(candidate.main)], check=True)
    return folder


# In the runtime: read on from a checkpoint of mlx-lm's own caches, twice, and say how far the logits are off.
GO_BACK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mlx.core as mx
from mlx_lm.utils import load_model
from paceline_mlx_worker.memory import Plain

for folder in sys.argv[2:]:
    net, _ = load_model(Path(folder))
    memory = Plain(net)
    read = lambda *tokens: net(mx.array([tokens]), cache=memory.caches((0,), (0,), len(tokens)))
    mx.eval(read(*range(1, 40)))
    saved = memory.checkpoint(0)
    there = read(5)
    mx.eval(there, read(6, 7, 8))
    for _ in range(2):
        memory.go_back(0, saved)
        again = read(5)
        mx.eval(again, read(9, 9))
        print(memory.can_roll_back, mx.abs(there - again).max().item())
"""


def test_caches_of_mlx_lm_go_back_whole(candidate, models):
    folders = [str(models / kind) for kind in ("window", *FORGETFUL)]
    command = [candidate.argv[0], "-I", "-B", "-c", GO_BACK, worker_root(), *folders]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    assert said == ["False 0.0"] * 6


# In the runtime: what a context says of the last tokens of two lanes, and what follows from mlx-lm's logits.
CONFIDENCE = """
import sys
sys.path.insert(0, sys.argv[1])
import mlx.core as mx
from paceline_mlx_worker.binding import Model
from paceline_mlx_worker.context import Context
from paceline_mlx_worker.memory import memory_of

model = Model(sys.argv[2], progress=lambda fraction: None)
context = Context(model, memory_of(model.net, None))
prompts = [[1, 2, 3, 4], [7, 9]]
for lane, tokens in enumerate(prompts):
    context.batch.add(lane, tokens, 0, outputs=1)
context.decode()
for index, tokens in enumerate(prompts):
    token, probability = context.likeliest_with_probability(index)
    expected = mx.softmax(model.net(mx.array([tokens]))[0, -1].astype(mx.float32))
    print(token == mx.argmax(expected).item(), abs(probability / mx.max(expected).item() - 1) < 1e-5)
"""


@pytest.mark.parametrize("kind", ["16-bit", "8-bit", "window"])
def test_how_sure_a_draft_is_follows_from_its_logits(candidate, models, kind):
    command = [candidate.argv[0], "-I", "-B", "-c", CONFIDENCE, worker_root(), str(models / kind)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    assert said == ["True True"] * 2


# In the runtime: greedy steps of two lanes, then what was not foreseen, each beside a context that reads all anew.
AHEAD = """
import sys
sys.path.insert(0, sys.argv[1])
import mlx.core as mx
import numpy as np
from paceline_mlx_worker.binding import Model
from paceline_mlx_worker.context import Context
from paceline_mlx_worker.memory import memory_of

model = Model(sys.argv[2], progress=lambda fraction: None)
passes = []
class Counted:
    def __init__(self, net):
        self.net = net
    def __call__(self, tokens, cache=None):
        passes.append(tokens.shape)
        return self.net(tokens, cache=cache)
model.net, net = Counted(model.net), model.net

def opened():
    return Context(model, memory_of(net, None))

def read(context, lane, tokens, start):
    context.batch.clear()
    context.batch.add(lane, tokens, start, outputs=1)
    context.decode()
    return context.logits(0)

def anew(tokens):
    return read(opened(), 0, tokens, 0)

context, held = opened(), [[1, 2, 3], [4, 5, 6]]
for lane, tokens in enumerate(held):
    context.batch.add(lane, tokens, 0, outputs=1)
context.decode()
ahead = 0
for _ in range(12):
    before = len(passes)
    found = [context.likeliest(index) for index in range(2)]
    ahead += len(passes) - before
    context.batch.clear()
    for lane, token in enumerate(found):
        context.batch.add(lane, [token], len(held[lane]), outputs=1)
        held[lane].append(token)
    context.decode()
print(ahead, len(passes))
print(*(bool(np.array_equal(context.logits(i), anew(held[i]))) for i in range(2)))

def agrees(lane, tokens, start):
    return bool(np.array_equal(read(context, lane, tokens[start:], start), anew(tokens)))

context.likeliest(0)
other = [*held[0], (context.likeliest(0) + 1) % 300]
print(agrees(0, other, len(other) - 1))
context.likeliest(0)
context.keep(0, 5)
print(agrees(0, held[0][:5] + [9], 5))
token, length = context.likeliest(0), 6
context.forget(0)
context.copy(1, 0)
context.keep(0, length)
print(agrees(0, held[1][:length] + [token], length))
"""


@pytest.mark.parametrize("kind", ["16-bit", "4-bit", "window"])
def test_steps_begun_ahead_are_used_and_leave_no_trace_when_they_are_not(candidate, models, kind):
    command = [candidate.argv[0], "-I", "-B", "-c", AHEAD, worker_root(), str(models / kind)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    assert said == ["11 13", "True True", "True", "True", "True"]


@pytest.mark.parametrize("kind", KINDS)
def test_several_at_once_are_what_each_is_alone(worker, models, kind):
    answer = worker.call("load", role="main", path=str(models / kind), context_length=512, options={"parallel": 3})
    assert answer["slots"] == 3
    weights = (models / kind / "model.safetensors").stat().st_size
    assert 0.9 * weights < answer["memory"]["weights_bytes"] <= weights
    requests = [_request(n, temperature=0.7 * n, draft=LOOKUP if n < 2 else None) for n in range(3)]
    alone = [worker.generate(**request) for request in requests]
    ids = [worker.begin("generate", **request) for request in requests]
    for id, single in zip(ids, alone, strict=True):
        assert worker.generated(id).tokens == single.tokens


@pytest.mark.parametrize("options", [{}, *({"cache_type_k": t, "cache_type_v": t} for t in ("q8_0", "q4_0"))], ids=str)
@pytest.mark.parametrize("kind", ["16-bit", "4-bit", "window"])
def test_what_is_taken_back_leaves_no_trace(worker, models, kind, options):
    worker.call("load", role="main", path=str(models / kind), context_length=512, options=options)
    worker.call("load", role="draft", path=str(models / "16-bit"), options=options)
    request = _request(1, temperature=0)
    plain = worker.generate(**request)
    answer = worker.generate(**request, draft={"exact_tokens": 3})
    assert answer.result["acceptance"]["rounds"] > 0
    assert answer.tokens == plain.tokens
    again = worker.generate(**request)
    assert again.result["cached_tokens"] == len(request["prompt"]) - 1
    assert again.tokens == plain.tokens


@pytest.mark.parametrize(
    ("main", "draft"),
    [
        ("recurrent", "16-bit"),
        ("hybrid", "16-bit"),
        ("16-bit", "recurrent"),
        ("16-bit", "hybrid"),
        ("hybrid", "hybrid"),
    ],
)
def test_a_state_that_cannot_forget_goes_back_when_a_draft_is_refused(worker, models, main, draft):
    worker.call("load", role="main", path=str(models / main), context_length=512, options={"parallel": 2})
    worker.call("load", role="draft", path=str(models / draft))
    for temperature in (0, 0.8):
        request = _request(1, temperature=temperature)
        plain = worker.generate(**request)
        drafted = worker.generate(**request, draft={"exact_tokens": 3})
        acceptance = drafted.result["acceptance"]
        assert acceptance["rounds"] > 0
        if main == draft:
            assert acceptance["accepted"] > 0
        if main != draft or temperature:
            assert acceptance["rejected"] > 0
        assert drafted.tokens == plain.tokens


@pytest.mark.parametrize("kind", FORGETFUL)
def test_a_state_that_cannot_forget_serves_the_next_turn(worker, models, kind):
    worker.call("load", role="main", path=str(models / kind), context_length=512, options={"parallel": 1})
    request = _request(1, temperature=0)
    first = worker.generate(**request, draft=LOOKUP)
    prompt = request["prompt"]
    warm = worker.generate(**request)
    assert warm.result["cached_tokens"] == len(prompt) - 8
    assert warm.tokens == first.tokens
    more = {**request, "prompt": [*prompt, *warm.tokens, 7]}
    onward = worker.generate(**more)
    assert onward.result["cached_tokens"] == len(prompt) + len(warm.tokens) - 1
    worker.call("load", role="main", path=str(models / kind), context_length=512, options={"parallel": 1})
    assert worker.generate(**more).tokens == onward.tokens


@pytest.mark.parametrize("options", [{}, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_lane_lost_comes_back_as_it_was(worker, models, kind, options, taking_turns):
    prompts = [[1 + (i * i + n) % 700 for i in range(150)] for n in range(2)]

    def talk(**more):
        worker.call("load", role="main", path=str(models / kind), context_length=512, options={**options, **more})
        return taking_turns(worker, prompts)

    tokens, cached = talk(parallel=1)
    assert (tokens, cached) == talk(parallel=2)
    assert min(cached[2:]) > 140


@pytest.mark.parametrize("overflow", ["rollingWindow", "truncateMiddle"])
@pytest.mark.parametrize("kind", ["16-bit", "recurrent"])
def test_a_full_context_goes_on_alike_with_a_draft(worker, models, kind, overflow):
    worker.call("load", role="main", path=str(models / kind), context_length=64)
    request = {**_request(1, temperature=0.8), "max_tokens": 60, "context_overflow": overflow}
    plain = worker.generate(**request)
    assert plain.result["completion_tokens"] == 60
    assert worker.generate(**request, draft=LOOKUP).tokens == plain.tokens


def test_keys_and_values_are_quantized_alike(worker, models, refused):
    load = {"role": "main", "path": str(models / "16-bit")}
    for options, name in (
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, "options.cache_type_v"),
        ({"cache_type_k": "q5_1"}, "options.cache_type_k"),
    ):
        with pytest.raises(refused) as error:
            worker.call("load", **load, options=options)
        assert (error.value.kind, error.value.data["param"]) == ("invalid_request", name)


def _request(n, *, temperature, draft=None):
    prompt = [1 + (i * i + n) % 700 for i in range(25 + 17 * n)]
    request = {"prompt": prompt, "sampling": {"temperature": temperature, "seed": n}, "max_tokens": 20 + 3 * n}
    return {**request, "ignore_eos": True, **({"draft": draft} if draft else {})}
