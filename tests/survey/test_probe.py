import sys
import time

import psutil
import pytest

from paceline.survey import probe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the programs are shell scripts")


def test_output_of_a_program_that_works():
    assert probe.run(["/bin/sh", "-c", "echo one; echo two"], 10) == probe.Output("one\ntwo\n", None)


def test_environment_is_the_one_given():
    assert probe.run(["/bin/sh", "-c", "echo $ONE$HOME"], 10, {"ONE": "1"}).text == "1\n"


def test_status_and_complaint_are_quoted():
    output = probe.run(["/bin/sh", "-c", "echo partial; echo 'no   luck' >&2; exit 9"], 10)
    assert output == probe.Output("partial\n", "ended with status 9: no luck")


def test_complaint_on_standard_output_is_quoted_too():
    assert probe.run(["/bin/sh", "-c", "echo broken; exit 3"], 10).failure == "ended with status 3: broken"


@pytest.mark.parametrize("program", ["/nonexistent/program", "/", "nul\0byte"])
def test_what_cannot_be_started_says_so(program):
    assert probe.run([program], 10).failure.startswith("could not be started (")


def test_a_hanging_program_is_killed_with_its_children(tmp_path):
    pid_file = tmp_path / "pid"
    started = time.monotonic()
    # The grandchild keeps the pipe open, so killing the program alone would not end the read.
    output = probe.run(["/bin/sh", "-c", f"sleep 300 & echo $! > {pid_file}; echo early; wait"], 1.0)
    assert output == probe.Output("early\n", "gave no answer within 1 s")
    assert time.monotonic() - started < 60
    _wait_until_gone(int(pid_file.read_text()))


def test_a_child_that_outlives_the_program_and_holds_the_pipe_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    output = probe.run(["/bin/sh", "-c", f"sleep 300 & echo $! > {pid_file}; exit 0"], 1.0)
    assert output.failure == "gave no answer within 1 s"
    _wait_until_gone(int(pid_file.read_text()))


@pytest.mark.parametrize("redirect", ["", ">&2"])
def test_endless_output_is_cut_off(redirect):
    output = probe.run(
        ["/bin/sh", "-c", f"while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done {redirect}"], 60
    )
    assert output.failure == "wrote more than 1 MiB"
    assert len(output.text) < 2 << 20


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} is still alive"
        time.sleep(0.01)
