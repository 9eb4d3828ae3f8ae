"""All places of the serving room: how many may be taken, who must go for another, and whose turn it is to load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from paceline.serving.place import Place

if TYPE_CHECKING:
    from paceline.types import Model


class Places:
    """The places, each kept once it was asked for."""

    def __init__(self, max_loaded: int) -> None:
        """`max_loaded` bounds the models that are loaded and not kept."""
        self._max_loaded = max_loaded
        self._places: dict[str, Place] = {}
        self._changed = asyncio.Event()
        # Taken in this order, after a place's own locks. Who waits for room holds its turn alone, so that models that
        # need no room load meanwhile and whatever makes room can happen.
        self._turn = asyncio.Lock()
        self.loading = asyncio.Lock()
        """Held while a model loads: one at a time, so that the places are counted right."""

    def __iter__(self) -> Iterator[Place]:
        return iter(tuple(self._places.values()))

    def get(self, model_id: str) -> Place | None:
        return self._places.get(model_id)

    def of(self, model: Model, ttl_s: float | None) -> Place:
        """The model's place; a new one has this time to live."""
        return self._places.setdefault(model.id, Place(model, ttl_s, self._tell))

    def idle(self, but: Model) -> list[tuple[str, int]]:
        """The loaded models that nobody uses now, and what each took."""
        places = [p for p in self if p.leases == 0 and p.model.id != but.id]
        return [(p.model.id, p.worker.all_bytes) for p in places if p.worker is not None]

    def is_busy(self) -> bool:
        """Whether a request holds a model, or waits for one to be loaded."""
        return self.loading.locked() or self._turn.locked() or any(place.leases for place in self)

    def is_wanted(self) -> bool:
        """Whether somebody waits for room, or would have to. For who holds the loading lock."""
        return self._turn.locked() or self._is_full()

    @asynccontextmanager
    async def to_load(self, place: Place) -> AsyncIterator[None]:
        """Hold the loading lock, with room for the place's model, which takes none when it is kept.

        Whoever needs room gets it in the order they came here: an idle model is unloaded for it, first one whose worker
        died, else the longest unused.
        """
        if place.kept:
            async with self.loading:
                yield
            return
        async with self._turn:
            while True:
                await self.until(lambda: not self._is_full() or bool(self._spare()))
                async with self.loading:
                    if await self._make_room():
                        yield
                        return

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a change of some place makes `condition` true."""
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _taken(self) -> list[Place]:
        """The places of the models that requests loaded."""
        return [p for p in self if p.worker is not None and not p.kept]

    def _is_full(self) -> bool:
        return len(self._taken()) >= self._max_loaded

    def _spare(self) -> list[Place]:
        """The places that can be had for another model."""
        return [p for p in self._taken() if p.leases == 0 and not p.entry.locked()]

    async def _make_room(self) -> bool:
        """Whether there is room for one more model, after unloading what can go. The caller holds the loading lock."""
        while self._is_full():
            spare = self._spare()
            if not spare:
                return False
            await min(spare, key=lambda p: (p.alive, p.last_used)).stop()
        return True
