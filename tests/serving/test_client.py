"""Requests to a worker, and what becomes of those that nobody waits for any more."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager, suppress

import pytest

from paceline.serving.client import WorkerClient
from paceline.serving.generation import GenerateParams
from paceline.serving.launcher import LocalLauncher
from paceline.types import WorkerSpec

WORKER = """\
import json, sys
open(sys.argv[1]).read()  # reads no request before something writes there
running = []
for line in sys.stdin:
    frame = json.loads(line)
    request, method, params = frame["id"], frame["method"], frame["params"]
    result = {}
    if method == "cancel":
        running.remove(params["request"])
    elif method == "health":
        result = {"running": running}
    else:
        running.append(request)
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": request, "result": result}), flush=True)
"""
"""Ends no request but by `cancel`."""

LONG = "x" * (1 << 22)
"""More than the pipe to a worker holds."""


@pytest.fixture
def gate(tmp_path):
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


@asynccontextmanager
async def working(gate):
    """A client of the worker above."""
    async with asyncio.timeout(30):
        spec = WorkerSpec((sys.executable, "-c", WORKER, str(gate)), {}, gate.parent)
        client = WorkerClient(await LocalLauncher().launch(spec))
        try:
            yield client
        finally:
            await client.close()


async def leave(task):
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def begin(client):
    await client.begin(GenerateParams(LONG))


async def embed(client):
    await client.call("embed", {"inputs": [LONG]})


@pytest.mark.parametrize("ask", [begin, embed])
def test_who_leaves_while_a_request_is_written_has_it_ended(gate, ask):
    async def scenario():
        async with working(gate) as client:
            task = asyncio.create_task(ask(client))
            while not client._pending:
                await asyncio.sleep(0)
            assert client._channel._process.stdin.transport.get_write_buffer_size() > 0
            await leave(task)
            assert not client._pending
            await asyncio.to_thread(gate.write_text, "")
            assert await client.call("health", {}) == {"running": []}

    asyncio.run(scenario())


def test_who_leaves_a_request_does_not_wait_for_a_worker_that_reads_nothing(gate):
    async def scenario():
        async with working(gate) as client:
            stream = await client.begin(GenerateParams("x"))
            other = asyncio.create_task(begin(client))
            while len(client._pending) < 2:
                await asyncio.sleep(0)
            await stream.aclose()
            await leave(other)
            await asyncio.to_thread(gate.write_text, "")
            assert await client.call("health", {}) == {"running": []}

    asyncio.run(scenario())
