"""Idle models follow the selection, whoever changed it: this process, one it started, or another."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.serving.pool import Serving
    from paceline.store import Store

log = logging.getLogger(__name__)

LOOK_S = 30.0
"""So often it is looked whether another process changed the selection."""


class SelectionWatch:
    """Moves the idle models of a server when the selection was changed. All methods belong to one event loop."""

    def __init__(self, serving: Serving, store: Store, *, every_s: float = LOOK_S) -> None:
        """`every_s`: how long a change that nobody told of with `look` may stay unseen."""
        self._serving = serving
        self._store = store
        self._every_s = every_s
        self._asked = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to look, in the background."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    def look(self) -> None:
        """Look now: the selection may have changed."""
        self._asked.set()

    async def close(self) -> None:
        """Look no more; a move under way is broken off."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self) -> None:
        seen = self._store.selection_stamp()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), self._every_s)
            self._asked.clear()
            if not self._serving.loaded() or (now := self._store.selection_stamp()) == seen:
                continue  # what loads next loads with what is selected then
            seen = now
            try:
                await self._serving.move_idle()
            except Exception:
                log.exception("idle models could not be moved to what is selected")
