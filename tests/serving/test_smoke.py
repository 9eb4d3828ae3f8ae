"""The smoke test tells a worker that works from one that does not, and quotes what it said."""

import sys
from pathlib import Path

import pytest

from paceline.engine import python_worker
from paceline.errors import SmokeTestError
from paceline.serving.smoke import smoke_test
from paceline.types import WorkerSpec

ECHO = Path(__file__).parents[1] / "thirdparty" / "paceline-echo" / "src" / "paceline_echo" / "_worker"


def test_a_worker_that_works_tells_what_it_is(cage):
    cage.add("parrot")
    spec = python_worker(sys.executable, "paceline_echo_worker", ECHO)
    info = smoke_test(spec, sample=cage.model("parrot").path)
    assert (info.engine, info.protocol) == ("echo", 1)
    assert "generate" in info.features
    assert info.devices


def test_a_worker_that_crashes_on_its_first_token_is_found_out(cage):
    cage.add("parrot", faults=[{"at": 1, "do": "signal", "value": "SIGILL"}])
    spec = python_worker(sys.executable, "paceline_echo_worker", ECHO)
    with pytest.raises(SmokeTestError, match="SIGILL"):
        smoke_test(spec, sample=cage.model("parrot").path)


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
