"""The smoke test of an installed runtime: its real worker, in a process of its own, must start and generate."""

from __future__ import annotations

import asyncio
from pathlib import Path

from paceline.errors import PacelineError, SmokeTestError, WorkerDied
from paceline.serving.client import WorkerClient, WorkerInfo
from paceline.serving.generation import Completion, GenerateParams, Sampling
from paceline.serving.launcher import LocalLauncher
from paceline.types import WorkerSpec

_TOKENS = 8


def smoke_test(spec: WorkerSpec, *, sample: Path | None = None, timeout_s: float = 60.0) -> WorkerInfo:
    """Start the worker, let it load its engine and list devices and, given a sample model, generate a few tokens.

    Raises SmokeTestError with what happened and the tail of the worker's log. A crash of the engine on this machine (an
    instruction it lacks, a miscompiled kernel) shows here and not in a user's first request.
    """
    return asyncio.run(_run(spec, sample, timeout_s))


async def _run(spec: WorkerSpec, sample: Path | None, timeout_s: float) -> WorkerInfo:
    try:
        channel = await LocalLauncher().launch(spec)
        client = WorkerClient(channel)
        try:
            async with asyncio.timeout(timeout_s):
                info = await client.initialize()
                if sample is not None and "generate" in info.features:
                    await _generate(client, sample)
                return info
        except TimeoutError:
            raise SmokeTestError(
                f"the runtime's worker gave no answer within {timeout_s:.0f} s", help=_quote(channel.log_tail())
            ) from None
        finally:
            await client.close()
    except SmokeTestError:
        raise
    except WorkerDied as died:
        raise SmokeTestError(f"the runtime does not work here: {died.message}", help=_quote(died.log_tail)) from died
    except PacelineError as error:
        raise SmokeTestError(f"the runtime does not work here: {error.message}", help=error.help) from error


async def _generate(client: WorkerClient, sample: Path) -> None:
    await client.call("load", {"role": "main", "path": str(sample)})
    params = GenerateParams("def add(a, b):\n", max_tokens=_TOKENS, sampling=Sampling(temperature=0.0))
    stream = await client.begin(params)
    try:
        async for item in stream:
            if isinstance(item, Completion) and item.completion_tokens == 0:
                raise SmokeTestError(f"the sample model {sample.name} generated nothing")
    finally:
        await stream.aclose()


def _quote(log: str) -> str | None:
    return f"the worker's last words:\n{log}" if log else None
