"""A long text is tokenized beside the streams of others, and one that cannot fit is refused by its length."""

import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("patient_tokenizer.py")
LONG = 17_000
"""Characters that the engine's thread does not tokenize itself."""
ENGINES = [pytest.param(name, marks=pytest.mark.runtime) for name in ("llama.cpp", "mlx")]


@pytest.fixture
def patient(wires):
    wire = wires((sys.executable, str(WORKER)))
    wire.call("initialize", protocol=1)
    wire.call("load", role="main", path="/nowhere")
    return wire


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


@pytest.fixture
def goes_on(eventually):
    """Whether a stream goes on, while `waiting` requests have not begun."""

    def check(wire, running, waiting):
        for _ in range(5):
            streamed = len(wire.pieces(running))
            assert eventually(lambda streamed=streamed: len(wire.pieces(running)) > streamed)
            assert wire.call("health") == {"state": "busy", "running": [running], "waiting": waiting}

    return check


def held(gate):
    return f"until {gate} ".ljust(LONG, "x")


def stream(wire, prompt="abc"):
    """A generation that goes on until it is cancelled."""
    running = wire.begin("generate", prompt=prompt, ignore_eos=True, context_overflow="rollingWindow")
    wire.first_tokens(running)
    return running


@pytest.mark.parametrize("overflow", ["stopAtLimit", "rollingWindow"])
def test_streams_go_on_while_a_long_prompt_is_tokenized(patient, gate, goes_on, eventually, overflow):
    running = stream(patient)
    waiting = patient.begin("generate", prompt=held(gate), max_tokens=3, context_overflow=overflow)
    assert eventually(gate.with_suffix(".begun").exists)
    goes_on(patient, running, [waiting])
    # What came later need not wait either.
    assert patient.generate(prompt="abc", max_tokens=2).text == "xx"
    assert patient.call("tokenize", text="ab")["tokens"] == [97, 98]
    gate.touch()
    answer = patient.generated(waiting)
    assert (answer.text, answer.result["prompt_tokens"]) == ("xxx", LONG)


def test_streams_go_on_while_a_long_text_is_tokenized(patient, gate, goes_on, eventually):
    running = stream(patient)
    waiting = patient.begin("tokenize", text=held(gate))
    assert eventually(gate.with_suffix(".begun").exists)
    goes_on(patient, running, [waiting])
    # It takes no slot.
    others = [stream(patient) for _ in range(3)]
    gate.touch()
    assert bytes(patient.answer(waiting)["tokens"]).decode() == held(gate)
    assert patient.call("health")["running"] == [running, *others]


def test_who_waits_for_tokens_can_be_cancelled(patient, gate, eventually, refused):
    begun, behind = (patient.begin("generate", prompt=held(gate)) for _ in range(2))
    assert eventually(gate.with_suffix(".begun").exists)
    for id in (behind, begun):
        assert patient.call("cancel", request=id) == {}
        with pytest.raises(refused) as error:
            patient.answer(id)
        assert error.value.kind == "cancelled"
    assert patient.generate(prompt="abc", max_tokens=2).text == "xx"
    # The model stays until nothing reads its vocabulary.
    unloading = patient.begin("unload", role="main")
    gate.touch()
    assert patient.answer(unloading) == {}
    patient.call("load", role="main", path="/nowhere")
    assert len(patient.call("tokenize", text="y" * LONG)["tokens"]) == LONG


def test_what_fails_beside_the_engine_fails_alone(patient, gate, refused):
    running = stream(patient)
    gate.touch()
    with pytest.raises(refused) as error:
        patient.generate(prompt=held(gate).ljust(20_000, "x"))
    assert error.value.kind == "context_exceeded"
    assert error.value.data["prompt_tokens"] == 20_000
    assert patient.call("health")["running"] == [running]


def test_a_prompt_too_long_for_any_tokens_is_refused_unread(patient, gate, refused):
    prompt = held(gate).ljust(80_001, "ä")
    size = len(prompt.encode())
    with pytest.raises(refused) as error:
        patient.generate(prompt=prompt)
    assert error.value.kind == "context_exceeded"
    assert error.value.data["prompt_tokens"] == -(-size // 4)
    assert f"at least {-(-size // 4)} tokens" in str(error.value)
    assert not gate.with_suffix(".begun").exists()
    # Where something may go, it is read.
    waiting = patient.begin("generate", prompt=prompt, context_overflow="rollingWindow", max_tokens=2)
    gate.touch()
    assert patient.generated(waiting).result["context_dropped"] > 60_000


@pytest.mark.parametrize("candidate", ENGINES, indirect=True)
def test_an_engine_s_streams_go_on(loaded, candidate, goes_on, refused, eventually):
    running = stream(loaded, candidate.prompt)
    waiting = loaded.begin("generate", prompt=candidate.prompt * 80_000, context_overflow="truncateMiddle")
    assert eventually(lambda: waiting in loaded.call("health")["waiting"])
    goes_on(loaded, running, [waiting])
    loaded.call("cancel", request=waiting)
    with pytest.raises(refused):
        loaded.answer(waiting)
    assert loaded.generate(prompt=candidate.prompt, max_tokens=2).result["completion_tokens"] == 2


@pytest.mark.parametrize("candidate", ENGINES, indirect=True)
def test_an_engine_tokenizes_long_texts_as_a_whole(loaded, candidate):
    whole = loaded.call("tokenize", text=candidate.prompt * 400, add_special=False)["tokens"]
    assert loaded.call("detokenize", tokens=whole)["text"] == candidate.prompt * 400
    answer = loaded.generate(prompt=candidate.prompt * 400, context_overflow="rollingWindow", max_tokens=1)
    assert answer.result["prompt_tokens"] + answer.result["context_dropped"] == len(whole)


@pytest.mark.parametrize("candidate", ENGINES, indirect=True)
@pytest.mark.parametrize("letter", [" ", "a", "ä", "日", "<|im_start|>"])
def test_no_token_of_an_engine_stands_for_more_than_it_says(loaded, candidate, refused, letter):
    """The bound on a prompt's tokens is none that tokenizing contradicts."""
    text = letter * (400_000 // len(letter.encode()))
    with pytest.raises(refused) as error:
        loaded.generate(prompt=text, add_special=False)
    assert "at least" in str(error.value)
    least = error.value.data["prompt_tokens"]
    assert candidate.context_length <= least <= len(loaded.call("tokenize", text=text, add_special=False)["tokens"])
