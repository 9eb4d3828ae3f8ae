"""What a server needs to manage runtimes while it serves, and its update at start-up."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from paceline.api.operations import Operation, Operations, State
from paceline.serving.watch import LOOK_S, SelectionWatch

if TYPE_CHECKING:
    from paceline.library import Library
    from paceline.plugins import Plugins
    from paceline.serving.pool import Serving
    from paceline.store import Store
    from paceline.tokens import Tokens

log = logging.getLogger(__name__)

QUIET_S = 10.0
"""So long nothing may have been asked of a server before it begins its update."""


class UpdateMode(StrEnum):
    """What `serve` does about newer releases when it starts."""

    OFF = "off"
    CHECK = "check"
    """Looks for them once and says what it found."""
    APPLY = "apply"
    """Installs them, too, while nothing is asked of it."""
    BEFORE = "before"
    """Has installed them before it answers anything."""


@dataclass(frozen=True)
class UpdateAtStart:
    """The update that a server makes once, after its start."""

    mode: UpdateMode = UpdateMode.OFF
    channel: str = "stable"
    minimum_age_days: float = 0.0
    quiet_s: float = QUIET_S


class Administration:
    """The runtimes of a server: what manages them, who may, and what was done at start-up."""

    def __init__(
        self,
        *,
        serving: Serving,
        library: Library,
        plugins: Plugins,
        store: Store,
        tokens: Tokens,
        update: UpdateAtStart | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        """`look_s`: how soon idle models follow a selection that another process changed."""
        self.serving = serving
        self.library = library
        self.plugins = plugins
        self.store = store
        self.tokens = tokens
        self.watch = SelectionWatch(serving, store, every_s=look_s)
        """Told by whoever changes what is selected."""
        self.operations = Operations(store.home, serving.is_busy, self.watch.look)
        self.update = update or UpdateAtStart()
        """Its channel and minimum age hold for every update that does not say otherwise."""
        self._updating: asyncio.Task[None] | None = None
        self._operation: Operation | None = None

    def begin(self) -> None:
        """Begin the update at start-up and the watch for another selection, in the background."""
        self.watch.begin()
        if self.update.mode in (UpdateMode.CHECK, UpdateMode.APPLY):
            self._updating = asyncio.get_running_loop().create_task(self._update_once())

    async def close(self) -> None:
        """End what is under way."""
        if self._updating is not None:
            self._updating.cancel()
            with suppress(asyncio.CancelledError):
                await self._updating
        await self.operations.close()
        await self.watch.close()

    def describe_update(self) -> dict[str, Any]:
        """What became of the update at start-up, and which runtimes did not load a model since."""
        operation = self._operation
        return {
            "mode": self.update.mode,
            "channel": self.update.channel,
            "minimum_age_days": self.update.minimum_age_days,
            "state": operation.state if operation else self._state(),
            "operation": operation.describe() if operation else None,
            "returned": [
                {
                    "runtime": r.runtime,
                    "to": r.to,
                    "model": r.model,
                    "reason": r.reason,
                    "at": r.at.isoformat(timespec="seconds"),
                    "held": r.held,
                }
                for r in self.serving.returned
            ],
        }

    def _state(self) -> str:
        """Of an update that no operation makes, or none yet."""
        if self._updating is not None:
            return State.WAITING
        return State.DONE if self.update.mode is UpdateMode.BEFORE else "off"

    async def _update_once(self) -> None:
        await self.serving.quiet(self.update.quiet_s)
        arguments = {
            "query": None,
            "check": self.update.mode is UpdateMode.CHECK,
            "channel": self.update.channel,
            "minimum_age_days": self.update.minimum_age_days,
            "registry_only": False,
            "allow_unpinned": False,
        }
        self._operation = self.operations.start("update", arguments, yielding=True)
        await self._operation.wait()
        _report(self._operation)


def _report(operation: Operation) -> None:
    if operation.state is State.FAILED and operation.error is not None:
        log.warning("runtimes were not updated: %s", operation.error["message"])
    result = operation.result or {}
    for problem in result.get("problems", ()):
        # Having no network is no news; a source that lies is.
        level = logging.INFO if problem["failure"] == "unanswered" else logging.WARNING
        log.log(level, "looking for newer runtimes: %s", problem["message"])
    for done in result.get("installed", ()):
        if done["formats"]:
            log.info("updated %s to %s; `paceline runtime rollback` returns", done["instead_of"], done["runtime"])
        else:
            what = "%s is installed, and not selected instead of %s: somebody decided otherwise meanwhile"
            log.info(what, done["runtime"], done["instead_of"])
    for failed in result.get("failed", ()):
        held = f"; {failed['release']} is held until `paceline runtime unhold`" if failed["held"] else ""
        help = f"\n{failed['help']}" if failed["help"] else ""
        log.warning(
            "%s stays, %s was not installed: %s%s%s",
            *(failed["stays"], failed["release"], failed["message"], held, help),
        )
    if operation.arguments["check"]:
        for update in result.get("updates", ()):
            log.info("%s is newer than %s: `paceline runtime update`", update["release"], update["runtime"])
