"""The process that does long work: what it writes, and where it waits for its go-ahead."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from paceline.store import Store


@pytest.fixture
def errand(tiny, tmp_path):
    """An installation of the tiny engine that asks at the gate `tmp_path`, and a reader of what it writes."""
    arguments = {"query": "tiny", "allow_incompatible": False, "allow_unpinned": False}
    arguments |= {"prefer": None, "channel": "stable", "minimum_age_days": 0.0}
    request = {"do": "install", "arguments": arguments, "gate": str(tmp_path)}
    argv = [sys.executable, "-P", "-m", "paceline.manager.errand", json.dumps(request)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def until_it_asks(process):
    """What it tells before it asks at the gate, or ends: the question comes last."""
    told = []
    for line in process.stdout:
        told.append(json.loads(line))
        if told[-1].keys() & {"asks", "result", "error"}:
            break
    return told


def test_it_asks_before_each_step_that_computes_much(tiny, tmp_path, errand):
    store, asked = Store(tiny.home), []
    while "asks" in (told := until_it_asks(errand))[-1]:
        progress = told[-2]["progress"]
        asked.append((progress["phase"], progress["message"]))
        (staged,) = store.staging.iterdir()
        there = list(staged.glob("env/lib/python*/site-packages/tinyengine/__main__.py"))
        assert bool(there) == (progress["phase"] == "check")
        assert not (staged / "manifest.json").exists()
        (tmp_path / str(told[-1]["asks"])).touch()

    assert asked == [
        ("packages", ""),
        ("check", "comparing the files with what their packages record"),
        ("check", "starting the engine once"),
        ("check", "hashing the files"),
    ]
    assert told[-1]["result"]["runtime"]["id"] == "tiny-any-cpu@1.0.0"


def test_it_can_be_ended_where_it_waits(tiny, errand):
    assert until_it_asks(errand)[-1] == {"asks": 1}
    began = time.monotonic()
    errand.terminate()

    assert errand.wait(30) == 130
    assert time.monotonic() - began < 10
    assert list(Store(tiny.home).staging.iterdir()) == []
