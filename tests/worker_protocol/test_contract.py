"""docs/worker-protocol.md as tests: whatever worker `candidate` is, these hold."""

import itertools
import json
import math
import subprocess
import sys

import psutil
import pytest

FEATURES = {
    *("generate", "draft", "embed", "tokenize", "logprobs", "grammar", "lookup", "overflow", "lora", "lora_folder"),
}
GREEDY = {"temperature": 0}
STOP_REASONS = {"eosFound", "stopStringFound", "maxPredictedTokensReached", "contextLengthReached", "userStopped"}


# Rules of the process


def test_end_of_input_ends_an_idle_worker(loaded):
    loaded.hang_up()


def test_end_of_input_in_the_middle_of_a_line_ends_it(worker):
    worker.send(b'{"jsonrpc": "2.0", "id": 9')
    worker.hang_up()


def test_end_of_input_ends_a_worker_that_generates(loaded, candidate):
    running = loaded.begin("generate", prompt=candidate.prompt, ignore_eos=True)
    loaded.begin("generate", prompt=candidate.prompt, ignore_eos=True)
    loaded.first_tokens(running)
    loaded.hang_up()


def test_no_worker_outlives_a_killed_host(candidate, eventually):
    host = (
        "import subprocess, sys, time; argv = sys.argv[1:]; "
        "worker = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL); "
        'worker.stdin.write(b\'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocol":1}}\\n\'); '
        "worker.stdin.flush(); worker.stdout.readline(); print(worker.pid, flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", host, *candidate.argv], stdout=subprocess.PIPE)
    with process:
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
    assert eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 3)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"hello", -32700),
        (b"", -32700),
        (b'{"jsonrpc": "2.0", "id": 1', -32700),
        (b"\xff\xfe", -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b"17", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "health"}', -32600),
        (b'{"jsonrpc": "2.0", "id": "one", "method": "health"}', -32600),
        (b'{"jsonrpc": "2.0", "id": true, "method": "health"}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 7}', -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "health", "params": [1]}', -32600),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "health"}]', -32600),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else None,
)
def test_what_is_no_request_is_answered_and_skipped(worker, line, code, refused):
    worker.send(line + b"\n")
    with pytest.raises(refused) as error:
        worker.answer(None)
    assert error.value.code == code
    assert worker.call("health")["state"] == "idle"
    assert worker.errors() == [code]


def test_a_frame_over_64_MiB_is_refused_and_skipped(worker):
    frame = {"jsonrpc": "2.0", "id": 77, "method": "tokenize", "params": {"text": "a" * (64 * 1024 * 1024)}}
    worker.send(json.dumps(frame).encode() + b"\n")
    assert worker.call("health")["state"] == "idle"
    assert worker.errors() in ([-32600], [-32700])


def test_an_unknown_method_is_refused(worker, refused):
    with pytest.raises(refused) as error:
        worker.call("make_coffee")
    assert error.value.code == -32601


def test_a_method_outside_the_features_is_refused(worker, refused):
    features = worker.call("initialize", protocol=1)["features"]
    if "embed" in features:
        pytest.skip("this worker embeds")
    with pytest.raises(refused):
        worker.call("embed", inputs=["a"])
    assert worker.call("health")["state"] == "idle"


# initialize, load, unload


def test_initialize(bare, candidate):
    answer = bare.call("initialize", protocol=1, host="contract test")
    assert answer["protocol"] == 1
    assert answer["engine"] == candidate.engine
    assert answer["version"]
    assert {"generate"} <= set(answer["features"]) <= FEATURES
    assert answer["devices"]
    assert all(device["name"] and device["kind"] for device in answer["devices"])
    assert answer["slots"] >= 1
    assert all(isinstance(name, str) for name in answer.get("load_options", []))


def test_an_unknown_protocol_version_is_refused(bare, refused):
    with pytest.raises(refused, match="999"):
        bare.call("initialize", protocol=999)


@pytest.mark.parametrize("method", ["generate", "tokenize", "detokenize"])
def test_nothing_is_loaded_at_first(worker, refused, method):
    with pytest.raises(refused) as error:
        worker.call(method, prompt="a", text="a", tokens=[1])
    assert (error.value.code, error.value.kind) == (-32000, "not_loaded")


def test_load_says_what_was_loaded(worker, candidate):
    answer = worker.call("load", role="main", path=str(candidate.main), context_length=512)
    assert answer["context_length"] == 512
    assert answer["vocabulary"] > 256
    assert answer["load_s"] >= 0


def test_a_model_that_cannot_be_loaded_is_refused_and_the_worker_lives(worker, candidate, tmp_path, refused):
    for path in (candidate.cut_short(tmp_path), tmp_path / "absent"):
        with pytest.raises(refused) as error:
            worker.call("load", role="main", path=str(path))
        assert (error.value.code, error.value.kind) == (-32000, "load_failed")
    worker.call("load", role="main", path=str(candidate.main), context_length=512)
    assert worker.generate(prompt=candidate.prompt, max_tokens=2).result["completion_tokens"] == 2


def test_unloading_the_main_model_unloads_both(paired, candidate, refused):
    assert paired.call("unload", role="main") == {}
    with pytest.raises(refused) as error:
        paired.call("generate", prompt=candidate.prompt)
    assert error.value.kind == "not_loaded"
    paired.call("load", role="main", path=str(candidate.main), context_length=512)
    answer = paired.generate(prompt=candidate.prompt, max_tokens=4, draft={})
    assert answer.result["acceptance"] is None
    assert answer.result["draft_skipped"]


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("load", {"role": "captain", "path": "/x"}, "role"),
        ("load", {"role": "main", "path": 7}, "path"),
        ("load", {"role": "main", "path": "/x", "options": 7}, "options"),
        ("load", {"role": "main", "path": "/x", "options": {"magic": 1}}, "options.magic"),
        ("generate", {}, "prompt"),
        ("generate", {"prompt": {"a": 1}}, "prompt"),
        ("generate", {"prompt": [-1]}, "prompt"),
        ("generate", {"prompt": [10**12]}, "prompt"),
        ("generate", {"prompt": "a", "max_tokens": "many"}, "max_tokens"),
        ("generate", {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ("generate", {"prompt": "a", "stop": 7}, "stop"),
        ("tokenize", {}, "text"),
        ("detokenize", {"tokens": ["a"]}, "tokens"),
        ("cancel", {}, "request"),
    ],
)
def test_bad_parameters_are_named(loaded, refused, method, params, name):
    with pytest.raises(refused) as error:
        loaded.call(method, **params)
    assert error.value.code == -32602
    assert error.value.kind == "invalid_request"
    assert error.value.data["param"] == name
    assert loaded.call("health")["state"] == "idle"


# generate


def test_the_pieces_are_the_whole_output(loaded, candidate):
    answer = loaded.generate(prompt=candidate.prompt, sampling=GREEDY, max_tokens=64)
    result = answer.result
    assert len(answer.pieces) == result["completion_tokens"] >= 12
    assert answer.text
    assert result["stop_reason"] in STOP_REASONS
    assert result["prompt_tokens"] == len(loaded.call("tokenize", text=candidate.prompt, add_special=True)["tokens"])
    assert 0 <= result["cached_tokens"] <= result["prompt_tokens"]
    assert min(result["queue_s"], result["prompt_s"], result["generation_s"]) >= 0
    assert result["acceptance"] is None
    assert answer.drafted == 0


@pytest.mark.parametrize("seed", [0, 2**32 - 1, -1])
def test_a_seed_decides_what_is_drawn(loaded, candidate, seed):
    request = {"prompt": candidate.prompt, "max_tokens": 24, "ignore_eos": True}
    sampling = {"temperature": 2.0, "top_k": 0, "top_p": 1, "min_p": 0, "xtc_probability": 0.5, "seed": seed}
    once, again = (loaded.generate(**request, sampling=sampling).tokens for _ in range(2))
    assert once == again


def test_notifications_come_before_the_answer(loaded, candidate):
    id = loaded.begin("generate", prompt=candidate.prompt, max_tokens=8)
    loaded.answer(id)
    about = [f for f in loaded.frames if f.get("params", {}).get("request") == id or f.get("id") == id]
    assert [f.get("method") for f in about[:-1] if f.get("method") != "prompt"] == ["tokens"] * (len(about) - 1)
    assert "result" in about[-1]


def test_max_tokens(loaded, candidate):
    answer = loaded.generate(prompt=candidate.prompt, max_tokens=5)
    assert answer.result["stop_reason"] == "maxPredictedTokensReached"
    assert answer.result["completion_tokens"] == len(answer.pieces) == 5


def test_generation_ends_before_the_first_stop_string(loaded, candidate):
    text = loaded.generate(prompt=candidate.prompt, sampling=GREEDY, max_tokens=64).text
    middle = len(text) // 2
    stop, later = text[middle : middle + 5], text[middle + 7 : middle + 10]
    answer = loaded.generate(prompt=candidate.prompt, sampling=GREEDY, max_tokens=64, stop=[later, "\0never\0", stop])
    assert answer.result["stop_reason"] == "stopStringFound"
    assert answer.result["stop_string"] in (stop, later)
    assert answer.text == text[: min(text.index(stop), text.index(later))]
    assert len(answer.pieces) == answer.result["completion_tokens"]


def test_text_that_only_looked_like_a_stop_string_is_not_lost(loaded, candidate):
    text = loaded.generate(prompt=candidate.prompt, sampling=GREEDY, max_tokens=64).text
    nearly = [text[-8:] + "\0", text[10:15] + "\0", text[3:4] + "\0"]
    answer = loaded.generate(prompt=candidate.prompt, sampling=GREEDY, max_tokens=64, stop=nearly)
    assert answer.text == text
    assert answer.result["stop_reason"] != "stopStringFound"


def test_a_prompt_may_be_token_ids(loaded, candidate):
    text = loaded.generate(prompt=candidate.prompt, sampling=GREEDY, max_tokens=16)
    ids = loaded.call("tokenize", text=candidate.prompt, add_special=True)["tokens"]
    assert loaded.generate(prompt=ids, sampling=GREEDY, max_tokens=16).tokens == text.tokens


def test_tokens_and_text_are_the_same_thing(loaded, candidate):
    ids = loaded.call("tokenize", text=candidate.prompt, add_special=False)["tokens"]
    assert loaded.call("detokenize", tokens=ids)["text"].strip() == candidate.prompt.strip()


def test_a_prompt_that_does_not_fit_is_refused(worker, candidate, refused):
    worker.call("load", role="main", path=str(candidate.main), context_length=64)
    tokens = len(worker.call("tokenize", text=candidate.prompt * 40, add_special=True)["tokens"])
    with pytest.raises(refused) as error:
        worker.call("generate", prompt=candidate.prompt * 40)
    assert error.value.kind == "context_exceeded"
    assert error.value.data["prompt_tokens"] == tokens
    assert error.value.data["context_length"] == 64


@pytest.mark.parametrize("draft", [None, {"exact_tokens": 7}])
def test_a_full_context_ends_the_generation(worker, candidate, draft):
    worker.call("load", role="main", path=str(candidate.main), context_length=128)
    worker.call("load", role="draft", path=str(candidate.draft), context_length=128)
    answer = worker.generate(prompt=candidate.prompt, ignore_eos=True, draft=draft)
    assert answer.result["stop_reason"] == "contextLengthReached"
    assert answer.result["prompt_tokens"] + answer.result["completion_tokens"] <= 128 + 1


# Several at a time, and cancelling


def test_concurrent_requests_are_all_served_and_do_not_mix(loaded, candidate):
    alone = loaded.generate(prompt=candidate.prompt, sampling=GREEDY, max_tokens=24)
    ids = [
        loaded.begin("generate", prompt=candidate.prompt, sampling=GREEDY, max_tokens=24 if n % 2 else 6)
        for n in range(8)
    ]
    for n, id in enumerate(ids):
        assert loaded.generated(id).tokens == alone.tokens[: 24 if n % 2 else 6]


def test_health_tells_what_runs_and_what_waits(loaded, candidate, eventually, refused):
    slots = loaded.call("initialize", protocol=1)["slots"]
    ids = [loaded.begin("generate", prompt=candidate.prompt, ignore_eos=True) for _ in range(slots + 2)]
    for id in ids[:slots]:
        loaded.first_tokens(id)
    health = loaded.call("health")
    assert health["state"] == "busy"
    assert sorted(health["running"]) == ids[:slots]
    assert health["waiting"] == ids[slots:]
    for id in reversed(ids):
        loaded.call("cancel", request=id)
    for id in ids[slots:]:
        with pytest.raises(refused) as error:
            loaded.answer(id)
        assert error.value.kind == "cancelled"
    for id in ids[:slots]:
        assert loaded.answer(id)["stop_reason"] == "userStopped"
    assert eventually(lambda: loaded.call("health") == {"state": "idle", "running": [], "waiting": []})


def test_requests_beyond_the_queue_are_refused_at_once(worker, candidate, refused):
    load = {"role": "main", "path": str(candidate.main), "context_length": candidate.context_length}
    worker.call("load", **load, options={"queue": 2})
    slots = worker.call("initialize", protocol=1)["slots"]
    request = {"prompt": candidate.prompt, "ignore_eos": True}
    running = [worker.begin("generate", **request) for _ in range(slots)]
    for id in running:
        worker.first_tokens(id)
    waiting = [worker.begin("generate", **request) for _ in range(2)]
    with pytest.raises(refused) as error:
        worker.call("generate", **request)
    assert (error.value.code, error.value.kind) == (-32000, "overloaded")
    assert (error.value.data["waiting"], error.value.data["limit"]) == (2, 2)
    assert error.value.data["help"]
    # What is cancelled leaves the queue while the others go on, and another takes its place.
    worker.call("cancel", request=waiting[0])
    with pytest.raises(refused, match="cancelled"):
        worker.answer(waiting[0])
    waiting[0] = worker.begin("generate", **request)
    assert worker.call("health")["waiting"] == [waiting[1], waiting[0]]
    for id in (waiting[1], waiting[0], *running):
        worker.call("cancel", request=id)
    for id in running:
        assert worker.answer(id)["stop_reason"] == "userStopped"


def test_a_queue_may_be_of_no_length(worker, candidate, refused):
    load = {"role": "main", "path": str(candidate.main), "context_length": candidate.context_length}
    worker.call("load", **load, options={"queue": 0})
    slots = worker.call("initialize", protocol=1)["slots"]
    running = [worker.begin("generate", prompt=candidate.prompt, ignore_eos=True) for _ in range(slots)]
    for id in running:
        worker.first_tokens(id)
    with pytest.raises(refused) as error:
        worker.call("generate", prompt=candidate.prompt)
    assert error.value.kind == "overloaded"
    worker.call("cancel", request=running[0])
    worker.answer(running[0])
    assert worker.generate(prompt=candidate.prompt, max_tokens=2).result["completion_tokens"] == 2
    for id in running[1:]:
        worker.call("cancel", request=id)
    with pytest.raises(refused):
        worker.call("load", **load, options={"queue": -1})


def test_conversations_that_take_turns_on_one_slot_find_their_beginnings_again(worker, candidate, taking_turns):
    if "prompt_cache_bytes" not in worker.call("initialize", protocol=1)["load_options"]:
        pytest.skip("this worker keeps nothing beyond its slots")

    def talk(**options):
        worker.call(
            "load",
            role="main",
            path=str(candidate.main),
            context_length=candidate.context_length,
            options=options,
        )
        worker.call("load", role="draft", path=str(candidate.draft))
        texts = [f"{name} " * 100 + candidate.prompt for name in ("width", "colour")]
        prompts = [worker.call("tokenize", text=text, add_special=True)["tokens"] for text in texts]
        return taking_turns(worker, prompts, draft={"exact_tokens": 3})

    tokens, cached = talk(parallel=1)
    assert (tokens, cached) == talk(parallel=2)
    assert min(cached[2:]) > 100
    assert max(talk(parallel=1, prompt_cache_bytes=0)[1]) < 5


@pytest.fixture
def side_by_side(paired):
    """A worker with both models whose slots run at the same time."""
    if paired.call("initialize", protocol=1)["slots"] == 1:
        pytest.skip("this worker runs one generation at a time")
    return paired


def test_a_long_prompt_does_not_hold_up_a_stream(side_by_side, candidate):
    worker = side_by_side
    stream = worker.begin("generate", prompt=candidate.prompt, ignore_eos=True)
    worker.first_tokens(stream)
    long = worker.begin("generate", prompt="word " * 1000, max_tokens=1)
    worker.answer(long)
    worker.call("cancel", request=stream)
    worker.answer(stream)
    said = [
        (f["method"], f["params"]["request"])
        for f in worker.frames
        if f.get("method") in ("tokens", "prompt") and f["params"]["request"] in (stream, long)
    ]
    chunks = [i for i, entry in enumerate(said) if entry == ("prompt", long)]
    assert len(chunks) > 5
    for before, after in itertools.pairwise(chunks):
        assert ("tokens", stream) in said[before:after]


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a stream"])
def test_a_long_prompt_can_be_asked_about_and_cancelled_within_a_step(side_by_side, candidate, beside):
    worker = side_by_side
    if beside:
        stream = worker.begin("generate", prompt=candidate.prompt, ignore_eos=True, draft={})
        worker.first_tokens(stream)
    long = worker.begin("generate", prompt="word " * 1900, ignore_eos=True)
    worker.wait_for(lambda f: f.get("method") == "prompt" and f["params"]["request"] == long)
    assert long in worker.call("health")["running"]
    cancel = worker.begin("cancel", request=long)
    assert worker.answer(long)["stop_reason"] == "userStopped"
    answered = next(i for i, f in enumerate(worker.frames) if f.get("id") == cancel)
    later = [f for f in worker.frames[answered:] if f.get("params", {}).get("request") == long]
    assert len(later) <= 1


def test_a_conversation_s_beginning_is_found_again_and_shared(side_by_side, candidate):
    worker = side_by_side
    system = "".join(f"def helper_{n}(value):\n    return value + {n}\n\n" for n in range(20))
    other = {"prompt": system + "# other\n" + candidate.prompt, "max_tokens": 8, "sampling": GREEDY}
    first = worker.begin("generate", prompt=system + candidate.prompt, ignore_eos=True)
    worker.first_tokens(first)
    beside = worker.generate(**other)
    assert beside.result["cached_tokens"] > 64
    again = worker.generate(**other)
    assert again.result["cached_tokens"] == again.result["prompt_tokens"] - 1
    assert again.tokens == beside.tokens
    worker.call("cancel", request=first)
    assert worker.answer(first)["stop_reason"] == "userStopped"


def test_requests_are_served_in_the_order_they_came(loaded, candidate):
    slots = loaded.call("initialize", protocol=1)["slots"]
    ids = [loaded.begin("generate", prompt=candidate.prompt, max_tokens=4) for _ in range(3 * slots)]
    for id in ids:
        loaded.answer(id)
    ended = [f["id"] for f in loaded.frames if f.get("id") in ids]
    assert all(ended.index(id) < ended.index(later) for id, later in zip(ids, ids[2 * slots :], strict=False))


@pytest.mark.parametrize("draft", [None, {"exact_tokens": 4}])
def test_cancel_ends_a_generation_between_two_steps(paired, candidate, draft):
    id = paired.begin("generate", prompt=candidate.prompt, ignore_eos=True, draft=draft)
    paired.first_tokens(id)
    assert paired.call("cancel", request=id) == {}
    answer = paired.generated(id)
    assert answer.result["stop_reason"] == "userStopped"
    assert len(answer.pieces) == answer.result["completion_tokens"]
    if draft:
        _adds_up(answer)
    again = paired.generate(prompt=candidate.prompt, max_tokens=3)
    assert again.result["stop_reason"] == "maxPredictedTokensReached"


def test_cancelling_what_has_ended_is_no_error(loaded, candidate):
    id = loaded.begin("generate", prompt=candidate.prompt, max_tokens=1)
    loaded.answer(id)
    assert loaded.call("cancel", request=id) == {}
    assert loaded.call("cancel", request=999_999) == {}


@pytest.mark.parametrize("method", ["load", "unload"])
def test_a_load_or_unload_that_waits_can_be_cancelled_and_holds_nobody_up(paired, candidate, method, refused):
    running = paired.begin("generate", prompt=candidate.prompt, ignore_eos=True)
    paired.first_tokens(running)
    waiting = paired.begin(method, role="draft", path=str(candidate.draft))
    after = [paired.begin("generate", prompt=candidate.prompt, max_tokens=2, draft={}) for _ in range(2)]
    assert waiting in paired.call("health")["waiting"]
    assert paired.call("cancel", request=waiting) == {}
    with pytest.raises(refused) as error:
        paired.answer(waiting)
    assert error.value.kind == "cancelled"
    if paired.call("initialize", protocol=1)["slots"] > 1:
        paired.answer(after[0])  # beside the one that runs
    paired.call("cancel", request=running)
    assert paired.answer(running)["stop_reason"] == "userStopped"
    for id in after:
        assert paired.generated(id).result["acceptance"] is not None


def test_other_streams_go_on_while_a_grammar_is_compiled(loaded, candidate, eventually, refused):
    if "grammar" not in loaded.call("initialize", protocol=1)["features"]:
        pytest.skip("this worker knows no grammars")
    # Of the sizes that are read, the one that takes longest, with what no other has.
    rules = [f"R{n}: /{'a?' * 3000}{'a' * 2000}{n}/" for n in range(31)]
    dear = {"lark": "\n".join([f"start: {' | '.join(f'R{n}' for n in range(31))}", *rules])}
    running = loaded.begin("generate", prompt=candidate.prompt, ignore_eos=True)
    loaded.first_tokens(running)
    waiting = [
        loaded.begin("generate", prompt=candidate.prompt, grammar=grammar) for grammar in (dear, dear, {"regex": "no"})
    ]
    for _ in range(5):
        streamed = len(loaded.pieces(running))
        assert eventually(lambda streamed=streamed: len(loaded.pieces(running)) > streamed)
        assert loaded.call("health") == {"state": "busy", "running": [running], "waiting": waiting}
    # What came later and needs no grammar need not wait either.
    assert loaded.generate(prompt=candidate.prompt, max_tokens=2).result["completion_tokens"] == 2
    for id in reversed(waiting):
        assert loaded.call("cancel", request=id) == {}
        with pytest.raises(refused) as error:
            loaded.answer(id)
        assert error.value.kind == "cancelled"
        assert loaded.pieces(id) == []
    loaded.call("cancel", request=running)
    loaded.answer(running)
    # The model can go though nobody can stop the compiler.
    assert loaded.call("unload", role="main") == {}
    loaded.call("load", role="main", path=str(candidate.main), context_length=512)
    assert loaded.generate(prompt=candidate.prompt, grammar={"regex": "yes|no"}).text in ("yes", "no")


# The draft


@pytest.mark.parametrize("sampling", [GREEDY, {"temperature": 0.9, "seed": 7}], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"max_tokens": 3},
        {"max_tokens": 16, "min_probability": 0.0},
        {"exact_tokens": 1},
        {"exact_tokens": 8},
        {"max_tokens": 2, "min_tokens": 3, "min_probability": 0.0},
    ],
    ids=json.dumps,
)
def test_a_draft_changes_nothing_but_the_speed(paired, candidate, knobs, sampling):
    request = {"prompt": candidate.prompt, "max_tokens": 40, "sampling": sampling}
    plain = paired.generate(**request)
    answer = paired.generate(**request, draft=knobs)
    assert answer.tokens == plain.tokens
    assert answer.text == plain.text
    for key in ("stop_reason", "stop_string", "prompt_tokens", "completion_tokens"):
        assert answer.result[key] == plain.result[key]
    _adds_up(answer)


def test_a_fixed_draft_length_is_kept(paired, candidate):
    answer = paired.generate(prompt=candidate.prompt, max_tokens=30, sampling=GREEDY, draft={"exact_tokens": 3})
    record = _adds_up(answer)
    assert record["accepted"] > 0
    assert len(record["drafted_per_position"]) <= 3
    assert record["drafted"] <= 3 * (record["rounds"] + 1)


def test_drafts_that_are_too_short_are_ignored(paired, candidate):
    knobs = {"max_tokens": 2, "min_tokens": 3, "min_probability": 0.0}
    answer = paired.generate(prompt=candidate.prompt, max_tokens=20, sampling=GREEDY, draft=knobs)
    record = _adds_up(answer)
    assert record["drafted"] == record["ignored"]
    assert record["rounds"] == 0
    assert answer.drafted == 0


def test_a_draft_takes_part_only_when_asked(paired, candidate):
    answer = paired.generate(prompt=candidate.prompt, max_tokens=20)
    assert answer.result["acceptance"] is None
    assert answer.result["draft_skipped"] is None
    assert answer.drafted == 0


def test_without_a_draft_model_the_answer_says_so(loaded, candidate):
    answer = loaded.generate(prompt=candidate.prompt, max_tokens=6, draft={"max_tokens": 4})
    assert answer.result["completion_tokens"] == 6
    assert answer.result["acceptance"] is None
    assert answer.result["draft_skipped"]


def test_stop_strings_and_drafts_together(paired, candidate):
    request = {"prompt": candidate.prompt, "sampling": GREEDY, "max_tokens": 64}
    text = paired.generate(**request).text
    middle = len(text) // 2
    answer = paired.generate(**request, stop=[text[middle : middle + 5]], draft={"exact_tokens": 8})
    assert answer.text == text[: text.index(text[middle : middle + 5])]
    _adds_up(answer)


# Log probabilities


@pytest.fixture
def telling(loaded):
    """A worker with its main model that gives log probabilities."""
    if "logprobs" not in loaded.call("initialize", protocol=1)["features"]:
        pytest.skip("this worker gives no log probabilities")
    return loaded


@pytest.mark.parametrize("alternatives", [0, 3, 20])
def test_each_token_has_its_log_probability_and_the_alternatives_asked_for(telling, candidate, alternatives):
    answer = telling.generate(prompt=candidate.prompt, sampling=GREEDY, max_tokens=10, logprobs=alternatives)
    assert len(answer.logprobs) == len(answer.pieces) == 10
    assert b"".join(bytes(p["bytes"]) for p in answer.logprobs).decode(errors="replace") == answer.text
    for token, given in zip(answer.tokens, answer.logprobs, strict=True):
        assert given["logprob"] <= 0
        assert len(given["top"]) == alternatives
        values = [logprob for _, logprob, _ in given["top"]]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        if alternatives:
            assert given["top"][0] == [token, given["logprob"], given["bytes"]]


def test_without_asking_there_are_no_log_probabilities(telling, candidate):
    assert telling.generate(prompt=candidate.prompt, max_tokens=4).logprobs == []
    assert telling.generate(prompt=candidate.prompt, max_tokens=4, logprobs=None).logprobs == []


def test_log_probabilities_are_the_model_s_whatever_the_sampling(telling, candidate):
    request = {"prompt": candidate.prompt, "max_tokens": 1, "logprobs": 5}
    sampling = {"temperature": 1.5, "top_k": 1, "logit_bias": {"7": -5}, "repeat_penalty": 1.5}
    plain, changed = telling.generate(**request, sampling=GREEDY), telling.generate(**request, sampling=sampling)
    assert [t for t, _, _ in changed.logprobs[0]["top"]] == [t for t, _, _ in plain.logprobs[0]["top"]]
    for (_, told, _), (_, expected, _) in zip(changed.logprobs[0]["top"], plain.logprobs[0]["top"], strict=True):
        assert told == pytest.approx(expected, abs=1e-4)


def test_log_probabilities_are_the_same_with_a_draft(telling, candidate):
    request = {"prompt": candidate.prompt, "sampling": GREEDY, "max_tokens": 24, "logprobs": 2}
    plain = telling.generate(**request)
    telling.call("load", role="draft", path=str(candidate.draft), context_length=candidate.context_length)
    drafted = telling.generate(**request, draft={"exact_tokens": 4})
    assert drafted.drafted > 0
    assert drafted.tokens == plain.tokens
    for told, expected in zip(drafted.logprobs, plain.logprobs, strict=True):
        assert told["bytes"] == expected["bytes"]
        assert told["logprob"] == pytest.approx(expected["logprob"], abs=1e-3)
        assert [t for t, _, _ in told["top"]] == [t for t, _, _ in expected["top"]]


@pytest.mark.parametrize("alternatives", [-1, 21, 1.5, True, "3"])
def test_a_number_of_alternatives_that_makes_no_sense_is_refused(telling, candidate, alternatives, refused):
    with pytest.raises(refused) as error:
        telling.call("generate", prompt=candidate.prompt, logprobs=alternatives)
    assert (error.value.kind, error.value.data["param"]) == ("invalid_request", "logprobs")


# Prompt lookup


@pytest.fixture
def looking_up(loaded):
    """A worker with its main model that finds proposals in the context."""
    if "lookup" not in loaded.call("initialize", protocol=1)["features"]:
        pytest.skip("this worker looks nothing up")
    return loaded


NAMES = ("width", "height", "depth", "colour", "weight")
GETTERS = "".join(f"    def get_{name}(self):\n        return self.{name}\n\n" for name in NAMES * 3)
"""A text that goes on as it began."""


@pytest.mark.parametrize("sampling", [GREEDY, {"temperature": 0.8, "seed": 7}], ids=["greedy", "seeded"])
@pytest.mark.parametrize(
    "knobs", [{}, {"max_tokens": 3}, {"exact_tokens": 5}, {"min_tokens": 4, "min_probability": 0.5}], ids=json.dumps
)
def test_prompt_lookup_changes_nothing_but_the_speed(looking_up, knobs, sampling):
    request = {"prompt": GETTERS, "max_tokens": 40, "sampling": sampling, "ignore_eos": True}
    plain = looking_up.generate(**request)
    answer = looking_up.generate(**request, draft={"model": False, "lookup": True, **knobs})
    assert answer.tokens == plain.tokens
    assert answer.text == plain.text
    assert answer.result["draft_skipped"] is None
    record = _adds_up(answer)
    assert record["lookup"] == {"drafted": record["drafted"], "accepted": record["accepted"]}
    most = knobs.get("max_tokens") or knobs.get("exact_tokens") or 16
    assert len(record["drafted_per_position"]) <= most


def test_what_repeats_itself_is_accepted_without_a_draft_model(looking_up):
    knobs = {"model": False, "lookup": True, "exact_tokens": 5}
    answer = looking_up.generate(prompt=GETTERS, max_tokens=80, sampling=GREEDY, ignore_eos=True, draft=knobs)
    record = _adds_up(answer)
    assert record["accepted"] > 0.5 * record["drafted"] > 10


def test_a_draft_model_and_prompt_lookup_share_a_record(looking_up, candidate):
    request = {"prompt": GETTERS, "max_tokens": 60, "sampling": GREEDY, "ignore_eos": True}
    plain = looking_up.generate(**request)
    alone = looking_up.generate(**request, draft={"lookup": True})
    assert alone.result["draft_skipped"], "the draft model was asked for, too"
    assert _adds_up(alone)["lookup"]["drafted"] == alone.result["acceptance"]["drafted"] > 0
    looking_up.call("load", role="draft", path=str(candidate.draft), context_length=candidate.context_length)
    for knobs in ({"lookup": True}, {"lookup": True, "max_tokens": 4}, {"lookup": True, "exact_tokens": 3}):
        both = looking_up.generate(**request, draft=knobs)
        assert both.tokens == plain.tokens
        assert both.result["draft_skipped"] is None
        _adds_up(both)
    nobody = looking_up.generate(**request, draft={"model": False})
    assert nobody.result["acceptance"] is None
    assert nobody.result["draft_skipped"] is None


def _adds_up(answer):
    """The acceptance record of an answer, its meaning checked against the marks on the tokens."""
    record = answer.result["acceptance"]
    assert record["drafted"] == record["accepted"] + record["rejected"] + record["ignored"]
    assert record["accepted"] == answer.drafted == sum(record["accepted_per_position"])
    verified, accepted = record["drafted_per_position"], record["accepted_per_position"]
    assert len(accepted) <= len(verified)
    assert all(a <= v for a, v in zip(accepted, verified, strict=False))
    assert all(later <= earlier for earlier, later in itertools.pairwise(verified))
    assert all(later <= earlier for earlier, later in itertools.pairwise(accepted))
    assert record["rounds"] == (verified[0] if verified else 0)
    assert record["accepted"] + record["rejected"] <= sum(verified) <= record["drafted"]
    looked_up = record.get("lookup", {"drafted": 0, "accepted": 0})
    assert 0 <= looked_up["accepted"] <= looked_up["drafted"] <= record["drafted"]
    assert looked_up["accepted"] <= record["accepted"]
    return record
