"""Requests for embeddings that wait at the same time are computed together; a worker counts its batches."""

import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("counting_embedder.py")


@pytest.fixture
def worker(wires):
    wire = wires((sys.executable, str(WORKER)))
    wire.call("initialize", protocol=1)
    wire.call("load", role="main", path="/nowhere")
    return wire


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


@pytest.fixture
def hold(worker, gate, eventually):
    """Begin a request whose batch computes until the gate is there, with as many more texts; its id."""

    def begin(more=0):
        id = worker.begin("embed", inputs=[f"until {gate}", *["more"] * more])
        assert eventually(gate.with_suffix(".begun").exists)
        return id

    return begin


@pytest.fixture
def held(worker, hold, gate):
    """Begin requests while a batch computes, which ends when all of them wait: `held([texts, …])` gives their ids."""

    def begin(requests):
        first = hold()
        ids = [worker.begin("embed", inputs=inputs) for inputs in requests]
        assert worker.call("health") == {"state": "busy", "running": [first], "waiting": ids}
        gate.touch()
        assert batches(worker, first) == [1]
        return ids

    return begin


def batches(worker, id):
    """In which batch each text of a request was computed."""
    return [round(y / x) for x, y in worker.answer(id)["embeddings"]]


def test_requests_that_wait_share_batches(worker, held):
    ids = held([[f"{n} {i}" for i in range(3)] for n in range(6)])
    found = [batches(worker, id) for id in ids]
    # Eighteen texts, sixteen of which go together: two batches where each request alone would have had one.
    assert found == [[2, 2, 2]] * 5 + [[2, 3, 3]]
    assert worker.answer(ids[0])["prompt_tokens"] == 9


def test_a_batch_is_not_larger_for_being_shared(worker, held):
    ids = held([["x" * 200], ["y" * 200], ["z" * 200], ["w"]])
    assert [batches(worker, id) for id in ids] == [[2], [2], [3], [3]]


def test_a_request_without_texts_is_answered_in_its_turn(worker, held):
    ids = held([["a"], []])
    assert [batches(worker, id) for id in ids] == [[2], []]


def test_what_waits_behind_a_full_batch_can_be_cancelled(worker, hold, gate, refused, eventually):
    first = hold(more=40)
    other = worker.begin("embed", inputs=["b"])
    worker.call("cancel", request=other)
    with pytest.raises(refused, match="before it began"):
        worker.answer(other)
    worker.call("cancel", request=first)
    gate.touch()
    with pytest.raises(refused) as error:
        worker.answer(first)
    assert error.value.kind == "cancelled"
    assert batches(worker, worker.begin("embed", inputs=["c"])) == [2]
    assert eventually(lambda: worker.call("health")["state"] == "idle")


def test_a_batch_that_fails_is_told_to_all_whose_it_was_and_the_worker_goes_on(worker, held, refused):
    ids = held([["a"], ["broken"], ["too long " * 80]])
    with pytest.raises(refused) as error:
        worker.answer(ids[2])
    assert error.value.kind == "context_exceeded"
    for id in ids[:2]:
        with pytest.raises(refused, match="this text is broken") as error:
            worker.answer(id)
        assert error.value.kind == "engine_failed"
    assert batches(worker, worker.begin("embed", inputs=["b"])) == [3]
    worker.call("unload", role="main")
    with pytest.raises(refused, match="no model is loaded"):
        worker.call("embed", inputs=["a"])
