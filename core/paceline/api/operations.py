"""Long work on runtimes, one after the other, each in a process of its own (`manager.errand`) that can be followed
and ended."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from paceline import child
from paceline.errors import NotFoundError, OverloadedError
from paceline.untrusted_json import parse

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

REMEMBERED = 32
WAITING = 16
GRACE_S = 10.0
"""How long a cancelled operation may take to clean up."""
_LOOK_S = 0.1
_TAIL_LINES = 20


class State(StrEnum):
    WAITING = "waiting"
    """Another operation runs."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass
class Operation:
    """One piece of work, its progress and what came of it."""

    do: str
    arguments: Mapping[str, Any]
    yielding: bool
    """While answers are generated, what it builds stands still, and it begins nothing else that computes much."""
    id: str = field(default_factory=lambda: uuid4().hex[:12])
    state: State = State.WAITING
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    paused: bool = False
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.asks: int | None = None
        """The step before which it waits for a go-ahead."""

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.id,
            "do": self.do,
            "arguments": dict(self.arguments),
            "state": self.state,
            "paused": self.paused,
            "began_at": self.began_at.isoformat(timespec="seconds"),
            "ended_at": self.ended_at.isoformat(timespec="seconds") if self.ended_at else None,
            "progress": self.progress,
            "result": self.result,
            "error": self.error,
        }

    def change(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changes(self) -> AsyncIterator[None]:
        """Yields after every change until the end; changes that come faster than they are read count once."""
        while not self.ended:
            changed = self._changed
            yield
            await changed.wait()

    async def wait(self) -> None:
        """Wait for the end."""
        async for _ in self.changes():
            pass


class Operations:
    """The operations of one server. All methods belong to one event loop."""

    def __init__(
        self,
        home: Path,
        is_busy: Callable[[], bool] = lambda: False,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """`is_busy`: whether answers are being generated now. `ended` is called when an operation has ended."""
        self._home = home
        self._is_busy = is_busy
        self._ended = ended
        self._all: deque[Operation] = deque()
        self._turn = asyncio.Lock()

    def start(self, do: str, arguments: Mapping[str, Any], *, yielding: bool = False) -> Operation:
        """Begin an errand, or let it wait for its turn. Raises OverloadedError when too many wait."""
        if sum(not o.ended for o in self._all) > WAITING:
            raise OverloadedError(
                f"{WAITING} operations wait already", help="cancel some, or try again when they have ended"
            )
        operation = Operation(do, arguments, yielding)
        ended = [o for o in self._all if o.ended]
        for old in ended[: max(0, len(ended) - REMEMBERED + 1)]:
            self._all.remove(old)
        self._all.append(operation)
        operation.task = asyncio.get_running_loop().create_task(self._run(operation))
        return operation

    def all(self) -> tuple[Operation, ...]:
        """Those under way and the latest that ended, oldest first."""
        return tuple(self._all)

    def get(self, id: str) -> Operation:
        for operation in self._all:
            if operation.id == id:
                return operation
        raise NotFoundError(f"there is no operation {id!r}", help="GET /api/v1/runtimes/operations lists them")

    async def cancel(self, operation: Operation) -> None:
        """End an operation; returns when it has ended and cleaned up. One that has ended stays as it is."""
        if operation.task is not None and not operation.ended:
            operation.task.cancel()
            await asyncio.wait([operation.task])

    async def close(self) -> None:
        """Cancel everything."""
        await asyncio.gather(*(self.cancel(o) for o in self.all()))

    async def _run(self, operation: Operation) -> None:
        ending: dict[str, Any] = {}
        try:
            async with self._turn:
                operation.change(state=State.RUNNING)
                ending = await self._work(operation)
        except asyncio.CancelledError:
            ending = {"state": State.CANCELLED}
        except Exception as error:
            log.exception("the operation %s failed unexpectedly", operation.do)
            ending = _failed("internal_error", f"Paceline made a mistake ({type(error).__name__}); see its log")
        finally:
            operation.change(ended_at=datetime.now(UTC), paused=False, **ending)
            self._ended()

    async def _work(self, operation: Operation) -> dict[str, Any]:
        if not operation.yielding:
            return await self._run_errand(operation, None)
        with tempfile.TemporaryDirectory(prefix="paceline-gate-") as gate:
            return await self._run_errand(operation, Path(gate))

    async def _run_errand(self, operation: Operation, gate: Path | None) -> dict[str, Any]:
        request = {"do": operation.do, "arguments": dict(operation.arguments), "gate": str(gate) if gate else None}
        argv = [sys.executable, "-P", "-m", "paceline.manager.errand", json.dumps(request)]
        environment = {**os.environ, "PACELINE_HOME": str(self._home)}
        said: deque[str] = deque(maxlen=_TAIL_LINES)
        async with child.running(argv, env=environment, cwd=Path(sys.prefix), grace_s=GRACE_S) as process:
            pausing = asyncio.create_task(self._give_way(operation, process.pid, gate)) if gate is not None else None
            try:
                assert process.stdout is not None
                async for line in process.stdout:
                    message = _message(line)
                    if "progress" in message:
                        operation.change(progress=message["progress"])
                    elif "asks" in message:
                        operation.asks = message["asks"]
                    elif "result" in message:
                        return {"state": State.DONE, "result": message["result"]}
                    elif "error" in message:
                        return {"state": State.FAILED, "error": message["error"]}
                    else:
                        said.append(line.decode(errors="replace"))
            finally:
                if pausing is not None:
                    pausing.cancel()
                    with suppress(asyncio.CancelledError):
                        await pausing
        status = process.returncode
        return _failed("internal_error", f"the process that should {operation.do} ended with status {status}", said)

    async def _give_way(self, operation: Operation, pid: int, gate: Path) -> None:
        """Let a build stand still while answers are generated, and no other step that computes much begin.

        A build is suspended in the middle. A download goes on, lest its connections break; and what has time-outs of
        its own, such as the start of the engine, is not begun before it may, and then not interrupted.
        """
        suspended = False
        try:
            while True:
                busy = self._is_busy()
                building = (operation.progress or {}).get("phase") == "build"
                if (wanted := building and busy) != suspended:
                    (child.pause if wanted else child.resume)(pid)
                    suspended = wanted
                if operation.asks is not None and not busy:
                    (gate / str(operation.asks)).touch()
                    operation.asks = None
                if (paused := suspended or operation.asks is not None) != operation.paused:
                    operation.change(paused=paused)
                await asyncio.sleep(_LOOK_S)
        finally:
            child.resume(pid)


def _message(line: bytes) -> dict[str, Any]:
    try:
        value = parse(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _failed(code: str, message: str, said: deque[str] | None = None) -> dict[str, Any]:
    log_tail = "".join(said or ())
    help = f"its last words:\n{log_tail}" if log_tail else None
    return {"state": State.FAILED, "error": {"code": code, "message": message, "help": help, "param": None}}
