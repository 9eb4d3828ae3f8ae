"""The smoke test of an installed runtime: its real worker, in a process of its own, must start and compute rightly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from paceline.errors import PacelineError, SmokeTestError, WorkerDied
from paceline.serving.client import WorkerClient, WorkerInfo
from paceline.serving.generation import GenerateParams, Sampling, TokenBatch
from paceline.serving.launcher import LocalLauncher

if TYPE_CHECKING:
    from paceline.serving.client import Device
    from paceline.serving.samples import Sample
    from paceline.types import GpuRequirement, WorkerSpec

_GPU_KINDS = frozenset({"gpu", "igpu"})


def smoke_test(
    spec: WorkerSpec, *, sample: Sample | None = None, gpu: GpuRequirement | None = None, timeout_s: float = 60.0
) -> WorkerInfo:
    """Start the worker and let it load its engine, list devices and generate the expected tokens of `sample`.

    `gpu` is what the release asks for: a worker that then lists no GPU has libraries that do not reach it, and would
    compute everything on the processor without a word. A worker that does not generate, or an engine whose format has
    no sample, is judged by its start and its devices alone.

    Raises SmokeTestError with what happened and the tail of the worker's log. A crash of the engine on this machine (an
    instruction it lacks) or wrong numbers (a miscompiled kernel, a driver's fault) show here and not in a user's first
    request. Tokens are compared exactly; `Sample.tokens` says why that accuses no engine that computes rightly.
    """
    return asyncio.run(_run(spec, sample, gpu, timeout_s))


async def _run(spec: WorkerSpec, sample: Sample | None, gpu: GpuRequirement | None, timeout_s: float) -> WorkerInfo:
    try:
        channel = await LocalLauncher().launch(spec)
        client = WorkerClient(channel)
        try:
            async with asyncio.timeout(timeout_s):
                info = await client.initialize()
                if gpu is not None:
                    _check_devices(info.devices, gpu, channel.log_tail())
                if sample is not None and "generate" in info.features:
                    _check_tokens(await _generate(client, sample), sample)
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


def _check_devices(devices: tuple[Device, ...], gpu: GpuRequirement, log: str) -> None:
    if any(device.kind in _GPU_KINDS for device in devices):
        return
    listed = ", ".join(f"{device.name} ({device.kind})" for device in devices) or "nothing"
    way_out = (
        "`paceline runtime survey` shows what the driver says of this machine's GPUs, and which releases need none: "
        "install one of those, or mend the driver"
    )
    raise SmokeTestError(
        f"the runtime needs a GPU ({gpu.make}), and its engine sees none: it lists {listed}",
        help="\n".join(filter(None, [way_out, _quote(log)])),
    )


def _check_tokens(made: tuple[int, ...], sample: Sample) -> None:
    if made == sample.tokens:
        return
    raise SmokeTestError(
        f"the runtime computes wrongly here: of the sample model {sample.path.name} it makes the tokens {list(made)}, "
        f"where {list(sample.tokens)} are right",
        help="its engine was miscompiled, or a driver is at fault: install another release (`paceline runtime survey` "
        "shows which run here) or update the GPU's driver; what was built here is built anew when PACELINE_CACHE names "
        "an empty folder, by the compiler that CC and CXX name",
    )


async def _generate(client: WorkerClient, sample: Sample) -> tuple[int, ...]:
    await client.call("load", {"role": "main", "path": str(sample.path)})
    params = GenerateParams(sample.prompt, max_tokens=len(sample.tokens), sampling=Sampling(temperature=0.0))
    made: list[int] = []
    stream = await client.begin(params)
    try:
        async for item in stream:
            if isinstance(item, TokenBatch):
                made.extend(piece.token for piece in item.pieces)
    finally:
        await stream.aclose()
    return tuple(made)


def _quote(log: str) -> str | None:
    return f"the worker's last words:\n{log}" if log else None
