"""What the llama.cpp worker does beyond the protocol: several generations in one batch, states that are shared."""

import itertools
from pathlib import Path

import pytest

from paceline import paths, plugins

pytestmark = pytest.mark.runtime

MAIN = str(paths.samples() / "paceline-coder-7m-q8_0.gguf")
LAYERS, WIDTH = 8, 128  # of the main model's keys and values
NAMES = ["to_dict", "close", "is_even", "merge", "read_lines", "count_words", "reverse", "flatten"]


def prompt(name):
    return f"<|im_start|>user\nWrite a Python function `{name}`.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def fresh_llama(wires, llama_cpp_runtime):
    """Start another worker with the sample pair."""
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)

    def start():
        wire = wires(spec.argv, dict(spec.env))
        wire.call("initialize", protocol=1)
        wire.call("load", role="main", path=MAIN)
        wire.call("load", role="draft", path=str(paths.samples() / "paceline-coder-3m-q8_0.gguf"))
        return wire

    return start


@pytest.fixture
def llama(fresh_llama):
    """A worker with the sample pair."""
    return fresh_llama()


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize(
    "draft", [None, {}, {"exact_tokens": 5}, {"lookup": True}], ids=["plain", "draft", "exact", "both"]
)
def test_an_answer_does_not_depend_on_what_runs_beside_it(llama, temperature, draft):
    def request(i):
        sampling = {"temperature": temperature, "seed": i}
        return {"prompt": prompt(NAMES[i]), "max_tokens": 40 + 5 * i, "sampling": sampling, "ignore_eos": True}

    alone = [llama.generate(**request(i)).tokens for i in range(len(NAMES))]
    together = [llama.begin("generate", **request(i), draft=draft) for i in range(len(NAMES))]
    assert [llama.generated(id).tokens for id in together] == alone


def test_what_a_draft_breaks_off_too_early_is_not_verified(llama):
    knobs = {"max_tokens": 8, "min_tokens": 8, "min_probability": 0.9}
    sampling = {"temperature": 0}
    request = {"prompt": prompt("close"), "max_tokens": 100, "sampling": sampling, "ignore_eos": True}
    record = llama.generate(**request, draft=knobs).result["acceptance"]
    assert record["ignored"] > 0
    assert record["drafted_per_position"] == [record["rounds"]] * 8 * (record["rounds"] > 0)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_draft_changes_nothing_in_long_contexts(llama, temperature):
    # From 257 tokens on llama.cpp computes single tokens in another way, unless values are cached as the worker asks.
    def tokens(i, **draft):
        sampling = {"temperature": temperature, "seed": i}
        return llama.generate(
            prompt=prompt(NAMES[i]), max_tokens=450, sampling=sampling, ignore_eos=True, **draft
        ).tokens

    for i in range(3):
        assert tokens(i, draft={"exact_tokens": 4}) == tokens(i)


def test_slots_run_at_the_same_time(llama):
    slots = llama.call("initialize", protocol=1)["slots"]
    assert slots > 1
    ids = [llama.begin("generate", prompt=prompt(NAMES[i]), max_tokens=60, ignore_eos=True) for i in range(slots)]
    for id in ids:
        llama.answer(id)
    order = [f["params"]["request"] for f in llama.frames if f.get("method") == "tokens"]
    first_end = min(len(order) - 1 - order[::-1].index(id) for id in ids)
    assert set(order[:first_end]) == set(ids)


@pytest.fixture
def together(llama):
    """Begin generations of one token that all wait when the first of them is started; returns their ids."""

    def begin(*prompts):
        loading = llama.begin("load", role="main", path=str(paths.samples() / "paceline-coder-7m-q8_0.gguf"))
        ids = [llama.begin("generate", prompt=text, max_tokens=1) for text in prompts]
        for id in (loading, *ids):
            llama.answer(id)
        return ids

    return begin


def test_prompts_that_came_together_are_read_in_the_order_they_came(llama, together):
    ids = together(*(f"{name} word " * 300 for name in NAMES[:4]))
    said = [(f["method"], f["params"]["request"]) for f in llama.frames if f.get("method") in ("tokens", "prompt")]
    for earlier, later in itertools.pairwise(ids):
        assert said.index(("tokens", earlier)) < said.index(("tokens", later))
        assert said.index(("prompt", earlier)) < said.index(("prompt", later))
    assert said.index(("tokens", ids[0])) < said.index(("prompt", ids[-1]))


def test_a_short_prompt_does_not_wait_for_a_long_one_before_it(llama, together):
    long, short = together("word " * 1500, prompt("close"))
    assert [f["params"]["request"] for f in llama.frames if f.get("method") == "tokens"] == [short, long]


def test_more_requests_than_slots_wait_their_turn(llama):
    ids = [llama.begin("generate", prompt=prompt(NAMES[i % 8]), max_tokens=5 + i, draft={}) for i in range(20)]
    for i, id in enumerate(ids):
        assert llama.answer(id)["completion_tokens"] <= 5 + i
    assert llama.call("health") == {"state": "idle", "running": [], "waiting": []}


def test_parallel_is_an_option_of_the_load(llama):
    assert llama.call("load", role="main", path=MAIN, options={"parallel": 2})["slots"] == 2
    assert llama.call("initialize", protocol=1)["slots"] == 2


@pytest.mark.parametrize(
    ("role", "options", "name"),
    [
        ("main", {"parallel": 0}, "parallel"),
        ("main", {"cache_type_k": "q9_9"}, "cache_type_k"),
        ("main", {"cache_type_v": "q8_0", "flash_attention": False}, "cache_type_v"),
        ("main", {"main_gpu": 99}, "main_gpu"),
        ("draft", {"parallel": 2}, "parallel"),
    ],
)
def test_an_option_that_makes_no_sense_is_named_and_nothing_is_unloaded(llama, refused, role, options, name):
    with pytest.raises(refused) as error:
        llama.call("load", role=role, path=MAIN, options=options)
    assert (error.value.kind, error.value.data["param"]) == ("invalid_request", f"options.{name}")
    assert llama.generate(prompt=prompt("close"), max_tokens=4, draft={}).result["acceptance"] is not None


# Bytes of 32 numbers in a cache: ggml's blocks.
@pytest.mark.parametrize(
    ("options", "bytes_k", "bytes_v"),
    [
        ({}, 64, 64),
        ({"cache_type_k": "q8_0"}, 34, 64),
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, 34, 34),
        ({"cache_type_k": "q4_0", "flash_attention": False}, 18, 64),
        ({"cache_type_k": "f32", "cache_type_v": "bf16"}, 128, 64),
    ],
)
def test_keys_and_values_are_cached_in_the_types_asked_for(llama, options, bytes_k, bytes_v):
    loaded = llama.call("load", role="main", path=MAIN, context_length=1024, options={**options, "parallel": 2})
    numbers = 2 * 1024 * LAYERS * WIDTH
    expected = numbers // 32 * (bytes_k + bytes_v)
    assert loaded["memory"]["cache_bytes"] == pytest.approx(expected, abs=2**20 / 100)
    assert llama.generate(prompt=prompt("close"), max_tokens=20, ignore_eos=True).result["completion_tokens"] == 20


def test_how_weights_are_read_and_how_many_tokens_a_step_has_changes_no_answer(llama):
    request = {"prompt": "word " * 300 + prompt("close"), "max_tokens": 30, "sampling": {"temperature": 0}}
    tokens = []
    for options in ({}, {"mmap": False}, {"mmap": True, "mlock": True}, {"eval_batch_size": 128, "gpu_layers": 0}):
        loaded = llama.call("load", role="main", path=MAIN, options=options)
        assert 0 < loaded["memory"]["weights_bytes"] < Path(MAIN).stat().st_size
        assert loaded["memory"]["compute_bytes"] > 0
        tokens.append(llama.generate(**request).tokens)
    assert tokens == [tokens[0]] * 4


LONG = "".join(f"def helper_{n}(value):\n    return value + {n}\n\n" for n in range(110))


def long_request(name, **more):
    sampling = {"temperature": 0.8, "seed": 3}
    return {"prompt": LONG + prompt(name), "max_tokens": 40, "ignore_eos": True, "sampling": sampling, **more}


def read(wire, id):
    """How far the prompt was read after each step that said so."""
    return [f["params"]["done"] for f in wire.frames if f.get("method") == "prompt" and f["params"]["request"] == id]


def test_a_long_prompt_is_read_in_tiles_whatever_runs_beside_it(llama, fresh_llama):
    id = llama.begin("generate", **long_request("close"))
    alone = llama.generated(id)
    n = alone.result["prompt_tokens"]
    assert n > 1500
    steps = -(-n // 512)
    equal = n / steps
    assert read(llama, id) == [pytest.approx(equal * step, abs=steps) for step in range(1, steps)]

    other = fresh_llama()
    stream = other.begin("generate", prompt=prompt("merge"), ignore_eos=True)
    other.first_tokens(stream)
    beside = other.generate(**long_request("close", draft={"exact_tokens": 4}))
    assert beside.result["cached_tokens"] == 0
    assert beside.tokens == alone.tokens


def test_a_long_prompt_goes_on_from_what_is_known(llama, fresh_llama):
    first = {"prompt": LONG[: len(LONG) // 4], "max_tokens": 1, "sampling": {"temperature": 0}}

    def asked(wire, **more):
        wire.generate(**first)
        return wire.generate(**long_request("flatten", **more))

    plain = asked(llama)
    assert plain.result["cached_tokens"] > 100
    assert asked(fresh_llama(), draft={"exact_tokens": 4}).tokens == plain.tokens


def test_a_cancelled_long_prompt_leaves_nothing_behind(llama, fresh_llama):
    id = llama.begin("generate", **long_request("close"))
    llama.wait_for(lambda f: f.get("method") == "prompt" and f["params"]["request"] == id)
    llama.call("cancel", request=id)
    answers = [llama.generate(**long_request(name)).tokens for name in ("is_even", "merge")]
    other = fresh_llama()
    assert answers == [other.generate(**long_request(name)).tokens for name in ("is_even", "merge")]


def test_a_prompt_beside_a_very_long_one_does_not_wait_for_it(llama, fresh_llama):
    """Both too long to be read where they are decoded, and read to the bits that each has alone."""
    load = {"role": "main", "path": MAIN, "context_length": 6144, "options": {"parallel": 4}}
    sampling = {"temperature": 0.8, "seed": 3}
    long = {"prompt": [300 + i % 50 for i in range(5000)], "max_tokens": 8, "sampling": sampling, "ignore_eos": True}
    short = {"prompt": "".join(LONG.splitlines(keepends=True)[:60]) + prompt("close"), "max_tokens": 40}
    short |= {"sampling": sampling, "ignore_eos": True}
    tiny = {"prompt": prompt("merge"), "max_tokens": 1}
    loading = llama.begin("load", **load)
    ids = [llama.begin("generate", **request) for request in (long, short, short, tiny)]
    llama.answer(loading)
    beside = [llama.generated(id) for id in ids]
    assert [answer.result["prompt_tokens"] > 256 for answer in beside] == [True, True, True, False]
    about = [(f["method"], f["params"]["request"]) for f in llama.frames if f.get("method") in ("tokens", "prompt")]
    streamed = [id for method, id in about if method == "tokens"]
    assert list(dict.fromkeys(streamed)) == [ids[3], ids[1], ids[2], ids[0]]
    # The long one goes on meanwhile, and the first of the short ones takes few of its steps.
    steps = [i for i, entry in enumerate(about) if entry == ("prompt", ids[0])]
    assert 1 < sum(step < about.index(("tokens", ids[1])) for step in steps) <= 6 < len(steps)
    other = fresh_llama()
    other.call("load", **load)
    for request, answer in zip((short, long), (beside[1], beside[0]), strict=True):
        alone = other.generate(**request)
        assert alone.tokens == answer.tokens
