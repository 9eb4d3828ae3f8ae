"""Requests that come at the same moment begin together.

An engine reads the prompts of a step in one pass over its weights. Begun a millisecond apart, the first prompt is read
alone, and all others wait for that pass and then for their own. So a request that is ready waits while others are still
being read and checked, for as long as the host takes for that. One that comes alone waits for nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

PATIENCE_S = 0.02
"""How long after it came a request is waited for, and how long one that is ready waits at most."""

_TURNS = 4
"""Turns of the event loop from a request's bytes in a socket to the handler that is told of it."""


class Arrivals:
    """The requests that have come and are not ready yet. All methods belong to one event loop."""

    def __init__(self) -> None:
        # Weak: one whose client leaves, or whose model does not load, never says that it is ready.
        self._coming: WeakSet[Arrival] = WeakSet()
        self._none = asyncio.Event()

    @contextmanager
    def coming(self) -> Iterator[Arrival]:
        """A request has come and is read in this block. One that fails there is waited for no longer."""
        arrival = Arrival(self)
        self._coming.add(arrival)
        self._none.clear()
        try:
            yield arrival
        except BaseException:
            self.end(arrival)
            raise

    def end(self, arrival: Arrival) -> None:
        """Nobody needs to wait for it."""
        self._coming.discard(arrival)
        if not self._coming:
            self._none.set()

    async def all_ready(self) -> None:
        """Wait for those that will be ready in a moment."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        latest = time.perf_counter() + PATIENCE_S
        while self._coming:
            until = min(latest, max((arrival.at for arrival in self._coming), default=0.0) + PATIENCE_S)
            try:
                await asyncio.wait_for(self._none.wait(), until - time.perf_counter())
            except TimeoutError:
                return


class Arrival:
    """One request."""

    def __init__(self, all_: Arrivals) -> None:
        self._all = all_
        self.at = time.perf_counter()
        """When it came, on that clock."""

    async def together(self) -> None:
        """It is ready to begin: wait for others that came with it."""
        self._all.end(self)
        await self._all.all_ready()
