"""What the llama.cpp worker does with contexts beyond the simple case: full ones, and models of other kinds."""

import pytest

from paceline import paths, plugins

pytestmark = pytest.mark.runtime

POLICIES = ["rollingWindow", "truncateMiddle"]
MAIN, DRAFT = (f"paceline-coder-{name}-q8_0.gguf" for name in ("7m", "3m"))
SIZE = 256


def prompt(name):
    return f"<|im_start|>user\nWrite a Python function `{name}`.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def start(llama_cpp_runtime, module_wires):
    """Start a worker."""
    spec = plugins.load().engine("llama.cpp").worker(llama_cpp_runtime)

    def begin():
        wire = module_wires(spec.argv, dict(spec.env))
        wire.call("initialize", protocol=1)
        return wire

    return begin


@pytest.fixture(scope="module")
def small(start):
    """A worker with the sample pair in contexts of `SIZE` tokens."""
    wire = start()
    wire.call("load", role="main", path=str(paths.samples() / MAIN), context_length=SIZE)
    wire.call("load", role="draft", path=str(paths.samples() / DRAFT))
    return wire


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_a_full_context_rolls_on_and_a_draft_changes_nothing(small, policy, temperature):
    request = {
        "max_tokens": 3 * SIZE,
        "sampling": {"temperature": temperature, "seed": 3},
        "ignore_eos": True,
        "context_overflow": policy,
    }
    plain = small.generate(prompt=prompt("merge"), **request)
    assert plain.result["stop_reason"] == "maxPredictedTokensReached"
    assert plain.result["completion_tokens"] == 3 * SIZE
    assert plain.result["context_dropped"] >= 2 * SIZE
    for draft in ({"exact_tokens": 5}, {"model": False, "lookup": True, "exact_tokens": 3}):
        answer = small.generate(prompt=prompt("merge"), **request, draft=draft)
        assert answer.result["acceptance"]["accepted"] > 0
        assert answer.tokens == plain.tokens
        assert answer.result["context_dropped"] == plain.result["context_dropped"]
    beside = [small.begin("generate", prompt=prompt(name), **request, draft={"exact_tokens": 4}) for name in "ab"]
    again = small.begin("generate", prompt=prompt("merge"), **request, draft={"exact_tokens": 4})
    assert small.generated(again).tokens == plain.tokens
    for id in beside:
        small.call("cancel", request=id)
        small.answer(id)


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_many_streams_of_all_lengths_say_what_each_says_alone(small, temperature):
    def request(i, **more):
        return {
            "prompt": f"{'# pass on ' * (i % 4 * 9)}{prompt(f'n{i}')}",
            "max_tokens": 5 + 37 * i % 90 if i % 5 else SIZE,
            "sampling": {"temperature": temperature, "seed": i},
            "ignore_eos": True,
            "context_overflow": POLICIES[i % 2] if i % 5 == 0 else "stopAtLimit",
            **more,
        }

    drafts = [None, {}, {"exact_tokens": 3}, {"lookup": True}]
    together = [small.begin("generate", **request(i, draft=drafts[i % 4])) for i in range(11)]
    for i in (3, 6):
        small.first_tokens(together[i])
        small.call("cancel", request=together[i])
    beside = [small.generated(id) for id in together]
    for i, answer in enumerate(beside):
        alone = small.generate(**request(i)).tokens
        assert answer.tokens == (alone if i not in (3, 6) else alone[: len(answer.tokens)])
    assert beside[10].result["context_dropped"] > 0


def test_without_a_policy_a_full_context_ends_the_output(small):
    answer = small.generate(prompt=prompt("merge"), ignore_eos=True)
    assert answer.result["stop_reason"] == "contextLengthReached"
    assert answer.result["context_dropped"] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_that_is_too_long_loses_its_middle_or_its_oldest_part(small, refused, policy):
    text = "\n".join(f"def helper_{n}(value): return value + {n}" for n in range(60)) + prompt("close")
    ids = small.call("tokenize", text=text, add_special=True)["tokens"]
    request = {"max_tokens": 20, "sampling": {"temperature": 0}, "ignore_eos": True}
    with pytest.raises(refused) as error:
        small.generate(prompt=ids, **request)
    assert error.value.kind == "context_exceeded"
    answer = small.generate(prompt=ids, **request, context_overflow=policy)
    dropped, left = answer.result["context_dropped"], answer.result["prompt_tokens"]
    assert dropped + left == len(ids)
    assert SIZE // 2 < left < SIZE
    kept = [
        keep
        for keep in (range(5) if policy == "rollingWindow" else range(SIZE // 4, SIZE // 4 + 5))
        if small.generate(prompt=ids[:keep] + ids[keep + dropped :], **request).tokens == answer.tokens
    ]
    assert kept


def test_a_request_may_say_what_of_its_beginning_stays(small, refused):
    beginning, rest = "word and " * 50, "or " * 300
    ids = small.call("tokenize", text=beginning + rest, add_special=True)["tokens"]
    length = len(small.call("tokenize", text=beginning, add_special=True)["tokens"])
    for prompt, keep in ((ids, length), (beginning + rest, beginning)):
        small.generate(prompt="something else", max_tokens=1)
        rolled = small.generate(prompt=prompt, max_tokens=1, context_overflow="rollingWindow", context_keep=keep)
        assert rolled.result["context_dropped"] > 0
        assert small.generate(prompt=ids[:length], max_tokens=1).result["cached_tokens"] == length - 1
    with pytest.raises(refused) as error:
        small.generate(prompt=rest, max_tokens=1, context_overflow="rollingWindow", context_keep=beginning)
    assert error.value.data["param"] == "context_keep"


def test_what_was_moved_begins_no_other_generation(start, small):
    # Tokens that a rolled window kept were computed with others in sight that are gone.
    keep, rolling = 12, {"context_overflow": "rollingWindow", "context_keep": 12}
    request = {"sampling": {"temperature": 0}, "ignore_eos": True}
    rolled = small.generate(prompt=prompt("merge"), **request, max_tokens=SIZE + 50, **rolling)
    ids = small.call("tokenize", text=prompt("merge"), add_special=True)["tokens"] + rolled.tokens
    dropped = rolled.result["context_dropped"]
    ids = (ids[:keep] + ids[keep + dropped :])[:-1]
    fresh = start()
    fresh.call("load", role="main", path=str(paths.samples() / MAIN), context_length=SIZE)
    answer = small.generate(prompt=ids, **request, max_tokens=20)
    assert answer.result["cached_tokens"] <= keep
    assert answer.tokens == fresh.generate(prompt=ids, **request, max_tokens=20).tokens
