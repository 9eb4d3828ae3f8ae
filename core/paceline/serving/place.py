"""One model's place among the loaded ones: its worker, who holds it, and what was asked for when it was loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.errors import InUseError
from paceline.loading import LoadConfig

if TYPE_CHECKING:
    from paceline.serving.starting import Worker
    from paceline.types import Model, Runtime


@dataclass(frozen=True)
class LoadedModel:
    """A loaded model as lists show it."""

    model: Model
    runtime: Runtime
    context_length: int
    draft: Model | None
    load_s: float
    running: int
    """Requests that hold it now."""
    slots: int
    """Requests that can run at the same time."""
    config: LoadConfig
    """How it was loaded."""
    features: tuple[str, ...]
    """What its worker can do (docs/worker-protocol.md)."""


class Place:
    """One model's place: its worker if it is loaded, and who holds it.

    Whoever waits for room, or for the last lease to end, is told of every change that can matter to them.
    """

    def __init__(self, model: Model, ttl_s: float | None, changed: Callable[[], None]) -> None:
        self.model = model
        self.ttl_s = ttl_s
        # Taken before `lock`: who enters holds it until the lease is counted, who unloads until the last lease ended.
        self.entry = asyncio.Lock()
        # Held while the worker or its draft changes and while a request is sent.
        self.lock = asyncio.Lock()
        self.worker: Worker | None = None
        self.config = LoadConfig()
        self.force = False
        self.kept = False
        self.leases = 0
        self.last_used = time.monotonic()
        self.expired = False
        """Whether its idle time is over and nobody came since."""
        self.expiring: asyncio.Task[None] | None = None
        self.moves = False
        """Whether it is to move when it becomes idle."""
        self.moving: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._changed = changed

    @property
    def alive(self) -> bool:
        """Whether the model is loaded, and its worker has not died."""
        return self.worker is not None and self.worker.client.alive

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Hold the entry."""
        try:
            async with self.entry:
                yield
        finally:
            self._changed()

    def leave(self) -> None:
        """End one lease."""
        self.leases -= 1
        self.last_used = time.monotonic()
        self._changed()

    def keep(self, kept: bool) -> None:
        """Whether the model was loaded on purpose and so makes no room for others."""
        self.kept = kept
        self._changed()

    async def stop(self) -> None:
        """End the worker, whatever it is doing, and wait for any that a cancelled caller left ending."""
        worker, self.worker = self.worker, None
        if worker is not None:
            task = asyncio.create_task(worker.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        try:
            if self._ending:
                await asyncio.shield(asyncio.gather(*self._ending))
        finally:
            self._changed()

    def rest(self, timer: asyncio.TimerHandle | None) -> None:
        """Replace the timer that ends an idle time, also one that has run off and was not acted on."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.expired = timer, False

    def describe(self) -> LoadedModel:
        worker = self.worker
        if worker is None:
            raise InUseError(f"{self.model.id} was unloaded meanwhile")
        return LoadedModel(
            self.model,
            worker.runtime,
            worker.context_length,
            worker.draft,
            worker.load_s,
            self.leases,
            worker.slots,
            worker.config,
            worker.info.features,
        )
