"""The echo worker fails as it is asked to, and only then: what host tests build on."""

import json
import signal

import pytest

pytestmark = pytest.mark.parametrize("candidate", ["echo"], indirect=True)


@pytest.fixture
def echo(wires, candidate, tmp_path):
    """Start an echo worker whose main model has these faults; `fields` are more of its model file."""

    def start(*faults, env=None, options=None, load=True, **fields):
        wire = wires(candidate.argv, {"PACELINE_ECHO_FAULTS": json.dumps(env)} if env else None)
        if load:
            path = tmp_path / "faulty.echo"
            path.write_text(json.dumps({"name": "faulty", "faults": list(faults), **fields}))
            wire.call("load", role="main", path=str(path), options=options or {})
        return wire

    return start


@pytest.mark.parametrize("where", ["file", "options", "environment"])
def test_a_signal_after_three_tokens(echo, where):
    fault = {"at": 3, "do": "signal", "value": "SIGKILL"}
    wire = {
        "file": lambda: echo(fault),
        "options": lambda: echo(options={"faults": [fault]}),
        "environment": lambda: echo(env=[fault]),
    }[where]()
    id = wire.begin("generate", prompt="abcdef")
    assert wire.end() == -signal.SIGKILL
    assert [text for _, text, _ in wire.pieces(id)] == ["a", "b", "c"]


def test_an_exit_status_and_a_last_word(echo):
    wire = echo({"at": 2, "do": "log", "value": "the last word"}, {"at": 2, "do": "exit", "value": 7})
    wire.begin("generate", prompt="abcdef")
    assert wire.end() == 7
    assert wire.log == b"the last word\n"


def test_dying_while_it_starts(echo):
    wire = echo(env=[{"at": "initialize", "do": "exit", "value": 3}], load=False)
    wire.begin("initialize", protocol=1)
    assert wire.end() == 3


def test_an_engine_failure(echo, refused):
    wire = echo({"at": 2, "do": "fail", "value": "out of memory"})
    with pytest.raises(refused, match=r"^out of memory$") as error:
        wire.call("generate", prompt="abcdef")
    assert error.value.kind == "engine_failed"


def test_a_model_that_does_not_load(echo, refused):
    with pytest.raises(refused, match="too big") as error:
        echo({"at": "load", "do": "fail", "value": "too big"})
    assert error.value.kind == "load_failed"


def test_hanging_leaves_health_answering(echo):
    wire = echo({"at": 1, "do": "hang"})
    id = wire.begin("generate", prompt="abcdef")
    wire.first_tokens(id)
    wire.call("cancel", request=id)
    assert wire.call("health")["running"] == [id]
    wire.hang_up()


def test_garbage_comes_between_frames(echo):
    wire = echo({"at": 1, "do": "garbage"})
    assert wire.generate(prompt="ab").text == "ab"
    assert len(wire.garbage) == 1
    wire.garbage.clear()


def test_what_native_code_prints_goes_to_the_log(echo, eventually):
    wire = echo({"at": 1, "do": "print", "value": "ggml: hello"})
    assert wire.generate(prompt="ab").text == "ab"
    assert eventually(lambda: wire.log == b"ggml: hello\n")


def test_ignoring_cancel(echo, tmp_path):
    wire = echo({"at": "step", "do": "gate", "value": str(tmp_path)}, {"at": "cancel", "do": "ignore"})
    (tmp_path / "go-1").touch()
    id = wire.begin("generate", prompt="abc")
    wire.first_tokens(id)
    wire.call("cancel", request=id)
    assert wire.generated(id).text == "abc"


def test_a_gate_holds_each_step(echo, tmp_path, eventually):
    wire = echo({"at": "step", "do": "gate", "value": str(tmp_path)})
    id = wire.begin("generate", prompt="abc")
    for step in (1, 2):
        assert eventually((tmp_path / f"at-{step}").exists)
        assert eventually(lambda step=step: len(wire.pieces(id)) == step - 1)
        (tmp_path / f"go-{step}").touch()
    assert eventually((tmp_path / "at-3").exists)
    assert not (tmp_path / "at-4").exists()
    (tmp_path / "go").touch()
    assert wire.generated(id).text == "abc"


def test_unfinished_characters_are_held_back(echo):
    answer = echo(vocabulary=[]).generate(prompt="å–z")
    assert [text for _, text, _ in answer.pieces] == ["", "å", "", "", "–", "z", ""]


def test_a_stop_string_across_tokens_is_held_back(echo):
    wire = echo(vocabulary=["one", " two", " three"])
    answer = wire.generate(prompt="one two three", stop=["o t"])
    assert [text for _, text, _ in answer.pieces] == ["one", " tw", ""]
    assert answer.result["stop_string"] == "o t"


def test_what_the_draft_gets_wrong_is_counted_exactly(echo, tmp_path):
    wire = echo()
    (tmp_path / "draft.echo").write_text(json.dumps({"name": "draft", "wrong_every": 4}))
    wire.call("load", role="draft", path=str(tmp_path / "draft.echo"))
    answer = wire.generate(prompt="abcdefgh", draft={"exact_tokens": 3})
    # abc right, d by the main model | efg right, h by the main model | end of text right, and with it the end
    assert [drafted for _, _, drafted in answer.pieces] == [True] * 3 + [False] + [True] * 3 + [False, True]
    assert answer.result["acceptance"] == {
        "drafted": 7, "accepted": 7, "rejected": 0, "ignored": 0, "rounds": 3,
        "drafted_per_position": [3, 2, 2], "accepted_per_position": [3, 2, 2],
        "lookup": {"drafted": 0, "accepted": 0},
    }  # fmt: skip
    answer = wire.generate(prompt="abcdefgh", max_tokens=6, draft={"exact_tokens": 5})
    # abc right, d wrong, e refused with it | ef right, then the limit: three were never compared
    assert answer.result["acceptance"] == {
        "drafted": 10, "accepted": 5, "rejected": 2, "ignored": 3, "rounds": 2,
        "drafted_per_position": [2, 2, 1, 1, 1], "accepted_per_position": [2, 2, 1],
        "lookup": {"drafted": 0, "accepted": 0},
    }  # fmt: skip


def test_a_draft_shorter_than_the_least_length_is_ignored(paired, candidate):
    knobs = {"max_tokens": 2, "min_tokens": 3, "min_probability": 0.0}
    record = paired.generate(prompt=candidate.prompt, max_tokens=20, draft=knobs).result["acceptance"]
    assert record["drafted"] == record["ignored"] > 0
