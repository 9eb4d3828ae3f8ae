"""Whether a model fits the memory that is there now, told before it is loaded."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from paceline.errors import DoesNotFitError, ModelFileError
from paceline.loading import LoadConfig, MemoryEstimate
from paceline.plugin_faults import FAULTS, owner, show
from paceline.survey.memory import memory_available
from paceline.survey.overrides import read_overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from paceline.engine import Engine
    from paceline.plugins import Plugins
    from paceline.serving.client import Device
    from paceline.types import Model, Runtime

LEAST_CONTEXT = 512
"""Tokens below which a shorter context is no advice."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """Memory that could be had now, in bytes; None: nobody can tell."""

    host: int | None
    gpus: tuple[int, ...] | None = None
    """Of each GPU with memory of its own, in the engine's order."""

    @property
    def on_gpus(self) -> int | None:
        """Of all GPUs together."""
        return None if self.gpus is None else sum(self.gpus)

    def holds(self, *estimates: MemoryEstimate) -> bool:
        """False only when it is known that the estimates together need more."""
        return not any(self.shortages(*estimates))

    def shortages(self, *estimates: MemoryEstimate) -> Iterator[Shortage]:
        """Where it is known that the estimates together need more: what must go to one GPU is told of that one."""
        on_host, on_gpus = sum(e.on_host for e in estimates), sum(e.on_gpu for e in estimates)
        if self.host is not None and on_host > self.host:
            yield Shortage(on_host, self.host, "of memory is")
        placed = [sum(needs) for needs in zip_longest(*(e.gpus for e in estimates), fillvalue=0)]
        # A GPU that is not there is for the engine to refuse.
        needs = enumerate(zip(placed, self.gpus or (), strict=False))
        small = [Shortage(need, have, f"on GPU {i} is") for i, (need, have) in needs if need > have]
        yield from small
        if not small and self.on_gpus is not None and on_gpus > self.on_gpus:
            yield Shortage(on_gpus, self.on_gpus, "on GPUs are")

    def freed(self, bytes_: int) -> Room:
        """The most it can be when a model that took so much was unloaded, wherever it lay."""
        host = None if self.host is None else self.host + bytes_
        return Room(host, None if self.gpus is None else tuple(free + bytes_ for free in self.gpus))


@dataclass(frozen=True)
class Shortage:
    """A place with less memory than is needed there, in bytes."""

    need: int
    have: int
    where: str
    """`of memory is`: as it stands between the number and `available`."""


def room_now(devices: Iterable[Device] = ()) -> Room:
    """What this process's control group and the machine leave, and what `devices` say is free on GPUs."""
    fact = read_overrides(os.environ).get("memory_available") or memory_available()
    free = [device.memory_free_bytes for device in devices if device.kind == "gpu"]
    known = tuple(size for size in free if size is not None)
    return Room(fact.value, known if known and len(known) == len(free) else None)


class MemoryGuard:
    """Refuses what is known not to fit."""

    def __init__(self, plugins: Plugins, *, enabled: bool) -> None:
        self._plugins = plugins
        self._enabled = enabled

    async def check(
        self, model: Model, config: LoadConfig, runtime: Runtime, room: Room, *, others: Sequence[tuple[str, int]]
    ) -> None:
        """Raise DoesNotFitError when `model` does not fit; `others` are loaded models that could go, and their size."""
        engine = self._plugins.engine(runtime.engine)

        def estimate_of(config: LoadConfig) -> MemoryEstimate | None:
            return estimate(engine, model, config, runtime)

        if self._enabled:
            await asyncio.to_thread(check_fits, model, config, room, estimate_of, others=others)

    async def against_draft(self, draft: Model, config: LoadConfig, runtime: Runtime, room: Room) -> str | None:
        """Why `draft` does not fit in what a main model, loaded with `config`, has left; None when it may."""
        engine = self._plugins.engine(runtime.engine)
        needed = (
            await asyncio.to_thread(estimate, engine, draft, config, runtime, draft=True) if self._enabled else None
        )
        if needed is None or room.holds(needed):
            return None
        return f"the draft {draft.id} does not fit: it would take {shown(needed)}, and {_available(needed, room)}"


def estimate(
    engine: Engine, model: Model, config: LoadConfig, runtime: Runtime, *, draft: bool = False
) -> MemoryEstimate | None:
    """The engine's estimate; None when it has none, or when its plugin fails to make one."""
    try:
        found = engine.estimate(model, config, runtime=runtime, draft=draft)
    except ModelFileError:
        return None  # the engine will say what is wrong with the file
    except FAULTS:
        log.exception("the engine %s failed to estimate what %s takes", owner(engine), model.id)
        return None
    if found is not None and not isinstance(found, MemoryEstimate):
        log.error("the engine %s estimated what %s takes as %s", owner(engine), model.id, show(found))
        return None
    return found


def check_fits(
    model: Model,
    config: LoadConfig,
    room: Room,
    estimate_of: Callable[[LoadConfig], MemoryEstimate | None],
    *,
    others: Sequence[tuple[str, int]] = (),
) -> None:
    """Raise DoesNotFitError, with the numbers and the ways out, when `model` is known not to fit.

    `others`: loaded models that could be unloaded, and the bytes each took.
    """
    needed = estimate_of(config)
    if needed is None or room.holds(needed):
        return
    advice = [*_advice(config, needed, room, estimate_of), *_unloading(needed, room, others)]
    advice.append("a smaller model or a stronger quantization would need less")
    raise DoesNotFitError(
        f"{model.id} does not fit: it would take {shown(needed)}, and {_available(needed, room)}",
        help="; ".join(advice),
    )


def shown(estimate: MemoryEstimate) -> str:
    """`12.3 GiB (weights 7.5 GiB, cache 4.0 GiB for 8 requests of 4096 tokens, compute 0.8 GiB)`."""
    parts = [f"weights {size(estimate.weights)}"]
    if estimate.cache is not None:
        requests = f"{estimate.parallel} requests of " if (estimate.parallel or 1) > 1 else ""
        context = f" for {requests}{estimate.context_length} tokens" if estimate.context_length else ""
        parts.append(f"cache {size(estimate.cache)}{context}")
    if estimate.compute is not None:
        parts.append(f"compute {size(estimate.compute)}")
    if estimate.reading:
        parts.append(f"reading a long prompt {size(estimate.reading)}")
    return f"{size(estimate.total)} ({', '.join(parts)})"


def size(count: int) -> str:
    """Bytes in powers of two, as memory is sold and shown."""
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"


def _available(estimate: MemoryEstimate, room: Room) -> str:
    said = []
    for lack in room.shortages(estimate):
        share = f" for the {size(lack.need)} that go there" if lack.need < estimate.total else ""
        said.append(f"{size(lack.have)} {lack.where} available{share}")
    return " and ".join(said)


def _advice(
    config: LoadConfig,
    needed: MemoryEstimate,
    room: Room,
    estimate_of: Callable[[LoadConfig], MemoryEstimate | None],
) -> Iterator[str]:
    """Configurations that would fit, the least loss first."""

    def fits(other: LoadConfig) -> bool:
        found = estimate_of(other)
        return found is not None and room.holds(found)

    context, parallel = needed.context_length, needed.parallel or 1
    fixed = replace(config, context_length=context, parallel=parallel)
    if needed.cache and parallel > 1 and fits(replace(fixed, parallel=1)):
        yield "parallel 1 fits"
    eight_bits = replace(fixed, cache_type_k="q8_0", cache_type_v="q8_0")
    if config.flash_attention is not False and config.cache_type_k is None and fits(eight_bits):
        yield "cache_type_k and cache_type_v q8_0 fit"
    while needed.cache and context is not None and context // 2 >= LEAST_CONTEXT:
        context //= 2
        if fits(replace(fixed, context_length=context)):
            yield f"context_length {context} fits"
            return
    for name in ("main_gpu", "tensor_split"):
        if getattr(config, name) is not None and fits(replace(config, **{name: None})):
            yield f"it fits without {name}, divided among all GPUs as they have room"
    if needed.on_gpu and room.host is not None and needed.total <= room.host:
        yield "gpu_layers 0 fits the machine's memory"


def _unloading(needed: MemoryEstimate, room: Room, others: Sequence[tuple[str, int]]) -> Iterator[str]:
    for name, taken in others:
        if room.host is not None and replace(room, host=room.host + taken).holds(needed):
            yield f"unloading {name} gives {size(taken)} back, which is enough"
            return
