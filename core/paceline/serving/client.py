"""The worker protocol over a channel: calls, streams, and what a dead worker means for those who wait."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import paceline
from paceline.errors import OverloadedError, RequestError, UnsupportedError, WorkerDied, WorkerError
from paceline.serving.generation import Completion, GenerateParams, TokenBatch
from paceline.serving.launcher import Channel

PROTOCOL = 1

PATIENCE_S = 600.0
"""Seconds without a frame after which a worker that has requests is taken for hung."""

_CANCELLED = ("generate", "embed", "load", "unload")
"""Requests that a worker can end early, some only while they wait; whoever leaves one before its answer came has it
ended."""

_LOOKS = 4
"""Looks at a worker in its patience, each at least a part of it after the one before: a host that was itself held up
finds what came meanwhile before it judges."""


@dataclass(frozen=True)
class Device:
    """One device an engine sees."""

    name: str
    kind: str
    memory_bytes: int | None = None
    description: str | None = None
    memory_free_bytes: int | None = None
    """When the worker started."""


@dataclass(frozen=True)
class WorkerInfo:
    """A worker's answer to `initialize`."""

    protocol: int
    engine: str
    version: str
    features: tuple[str, ...]
    devices: tuple[Device, ...]
    slots: int
    load_options: tuple[str, ...] = ()
    """The options that a load may have."""

    @property
    def name(self) -> str:
        """The engine as messages name it."""
        return f"the engine {self.engine} {self.version}"


class WorkerClient:
    """One worker. Calls may run concurrently; every one ends when the worker does.

    A worker that has requests and sends nothing for `patience_s` seconds is stopped: loading tells of its progress, and
    every step of a generation gives tokens or progress in its prompt (docs/worker-protocol.md).
    """

    def __init__(self, channel: Channel, *, patience_s: float = PATIENCE_S) -> None:
        self._channel = channel
        self._patience_s = patience_s
        self._heard = 0
        self._trouble: str | None = None
        self._ids = itertools.count(1)
        self._pending: dict[int, _Pending] = {}
        self._death: WorkerDied | None = None
        self._closing = False
        self._cancels: set[asyncio.Task[None]] = set()
        self._reader = asyncio.create_task(self._read())
        self._watcher = asyncio.create_task(self._watch())

    @property
    def alive(self) -> bool:
        return self._death is None and not self._closing

    async def initialize(self) -> WorkerInfo:
        result = await self.call("initialize", {"protocol": PROTOCOL, "host": f"paceline {paceline.__version__}"})
        try:
            if result["protocol"] != PROTOCOL:
                raise WorkerError(f"the worker speaks protocol {result['protocol']!r}, this host {PROTOCOL}")
            devices = tuple(
                Device(d["name"], d["kind"], d.get("memory_bytes"), d.get("description"), d.get("memory_free_bytes"))
                for d in result["devices"]
            )
            return WorkerInfo(
                PROTOCOL,
                result["engine"],
                result["version"],
                tuple(result["features"]),
                devices,
                result["slots"],
                tuple(result.get("load_options", ())),
            )
        except (KeyError, TypeError) as error:
            raise WorkerError(f"the worker's answer to initialize is malformed: {error!r}") from error

    async def call(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        on_progress: Callable[[float], None] | None = None,
    ) -> dict[str, Any]:
        """Call one method and return its result; the errors of the worker become those of `paceline.errors`."""
        async with _Request(self, method, params) as request:
            while True:
                frame = await request.next()
                if "method" not in frame:
                    return _result(frame)
                if on_progress is not None and frame["method"] == "progress":
                    on_progress(frame["params"]["fraction"])

    async def begin(self, params: GenerateParams) -> TokenStream:
        """Send a generation. It is on its way when this returns, so what is sent later takes effect later."""
        request = _Request(self, "generate", params.frame())
        await request.__aenter__()
        return TokenStream(request)

    async def close(self) -> None:
        """End the worker; whoever still waits gets WorkerDied."""
        self._closing = True
        await self._channel.close()
        await self._reader

    # --- frames ----------------------------------------------------------------------------------------------------

    async def _send(self, frame: Mapping[str, Any]) -> None:
        await self._channel.send({"jsonrpc": "2.0", **frame})

    def _forgo(self, request: int, method: str) -> None:
        """Have a request ended that nobody waits for any more, where that can be.

        In a task of its own: whoever leaves may itself be being cancelled, and must not wait for a worker that reads
        nothing.
        """
        if method in _CANCELLED and self.alive:
            frame = {"id": next(self._ids), "method": "cancel", "params": {"request": request}}
            task = asyncio.create_task(self._send(frame))
            self._cancels.add(task)
            task.add_done_callback(self._cancels.discard)

    async def _read(self) -> None:
        try:
            async for frame in self._channel.frames():
                self._heard += 1
                params = frame.get("params")
                key = params.get("request") if "method" in frame and isinstance(params, dict) else frame.get("id")
                pending = self._pending.get(key) if isinstance(key, int) else None
                if pending is not None:
                    pending.frames.put_nowait(frame)
        except WorkerError as error:
            self._trouble = error.message
            await self._channel.close(grace_s=0.0)
        exit_ = await self._channel.wait()
        self._watcher.cancel()
        how = f"{self._trouble}; it was stopped" if self._trouble else f"the worker {exit_}"
        self._death = WorkerDied(
            how,
            log_tail=self._channel.log_tail(),
            help="the next request starts a new worker; its last words are in the log",
        )
        for pending in self._pending.values():
            pending.frames.put_nowait(self._death)

    async def _watch(self) -> None:
        """Stop a worker that owes answers and has been silent for too long."""
        silent, before = 0, (0, 0)
        while silent < _LOOKS:
            await asyncio.sleep(self._patience_s / _LOOKS)
            # The oldest request tells one time of waiting from the next.
            now = (self._heard, min(self._pending, default=0))
            silent = silent + 1 if self._pending and now == before else 0
            before = now
        self._trouble = f"the worker had requests and sent nothing for {self._patience_s:g} seconds"
        await self._channel.close(grace_s=0.0)


class TokenStream:
    """The stream of one generation: token batches, then the completion. Close it; closing early cancels."""

    def __init__(self, request: _Request) -> None:
        self._request = request
        self._ended = False

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> TokenBatch | Completion:
        while not self._ended:
            frame = await self._request.next()
            if "method" not in frame:
                self._ended = True
                return Completion.from_frame(_result(frame))
            if frame["method"] == "tokens":
                return TokenBatch.from_frame(frame["params"])
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._ended = True
        self._request.leave()


class _Pending:
    __slots__ = ("frames",)

    def __init__(self) -> None:
        self.frames: asyncio.Queue[dict[str, Any] | WorkerDied] = asyncio.Queue()


class _Request:
    """One request in flight. Leaving it before its answer came cancels it in the worker, where that can be."""

    def __init__(self, client: WorkerClient, method: str, params: Mapping[str, Any]) -> None:
        self._client = client
        self._method = method
        self._params = params
        self._id = next(client._ids)
        self._pending = _Pending()
        self._answered = False

    async def __aenter__(self) -> _Request:
        if self._client._death is not None:
            raise self._client._death
        self._client._pending[self._id] = self._pending
        try:
            await self._client._send({"id": self._id, "method": self._method, "params": self._params})
        except BaseException:
            self.leave()
            raise
        return self

    async def next(self) -> dict[str, Any]:
        frame = await self._pending.frames.get()
        if isinstance(frame, WorkerDied):
            self._answered = True
            raise WorkerDied(frame.message, log_tail=frame.log_tail, help=frame.help)
        if "method" not in frame:
            self._answered = True
        return frame

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Wait for no answer any more."""
        if self._client._pending.pop(self._id, None) is not None and not self._answered:
            self._client._forgo(self._id, self._method)


def _result(frame: Mapping[str, Any]) -> dict[str, Any]:
    """The result of an answer, or its error raised."""
    error = frame.get("error")
    if error is None:
        result = frame.get("result")
        if not isinstance(result, dict):
            raise WorkerError(f"the worker's answer has no result object: {str(frame)[:200]}")
        return result
    data = error.get("data") or {}
    kind, message = data.get("kind"), str(error.get("message"))
    if kind == "context_exceeded":
        raise RequestError(message, param="messages", help="shorten the prompt or load the model with a longer context")
    if kind == "overloaded":
        raise OverloadedError(message, help=data.get("help"))
    if kind == "unsupported":
        raise UnsupportedError(message, param=data.get("param"), help=data.get("help"))
    if kind == "invalid_request":
        raise RequestError(message, param=data.get("param"), help=data.get("help"))
    raise WorkerError(message, help=data.get("help"))
