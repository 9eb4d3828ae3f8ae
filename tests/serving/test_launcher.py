"""Processes as channels."""

import asyncio
import sys

import psutil

from paceline.serving.launcher import Exit, LocalLauncher
from paceline.types import WorkerSpec


def test_a_worker_has_ended_while_its_child_still_holds_its_error_stream(tmp_path):
    """The child's pid is the worker's last word."""
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=sys.stdin, stdout=subprocess.DEVNULL)\n"
        "print(child.pid, file=sys.stderr, flush=True)\n"
        "sys.exit(3)\n"
    )

    async def scenario():
        channel = await LocalLauncher().launch(WorkerSpec((sys.executable, "-c", program), {}, tmp_path))
        exit_ = await asyncio.wait_for(channel.wait(), 30)
        child = psutil.Process(int(channel.log_tail()))
        assert child.is_running()
        assert exit_ == Exit(code=3)
        assert await channel.close() == exit_
        await asyncio.to_thread(child.wait, 30)

    asyncio.run(scenario())
