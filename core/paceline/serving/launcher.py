"""Where a worker runs. A launcher turns a worker specification into a channel; everything else only knows the channel.

`LocalLauncher` starts a process on this machine and speaks over its pipes. Another launcher may place the same worker,
speaking the same frames, elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from paceline.child import ended
from paceline.errors import WorkerError
from paceline.types import WorkerSpec
from paceline.untrusted_json import parse

MAX_FRAME = 64 * 1024 * 1024
"""Bytes of the longest frame (docs/worker-protocol.md)."""

_LOG_BYTES = 64 * 1024

_INHERITED = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TEMP",
    "TMP",
    "SYSTEMROOT",
    "WINDIR",
    "USERPROFILE",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "OMP_NUM_THREADS",
]
"""What a worker gets of the host's environment; a specification adds its own."""


@dataclass(frozen=True)
class Exit:
    """How a worker's process ended."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            try:
                known = signal.Signals(self.signal)
                return f"was killed by signal {self.signal} ({known.name}: {signal.strsignal(known)})"
            except ValueError:
                return f"was killed by signal {self.signal}"
        return f"ended with exit code {self.code}" if self.code is not None else "ended"


class Channel(Protocol):
    """Frames to and from one worker."""

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send one frame; does nothing when the worker is gone (`frames` ends and says so).

        A frame that was begun goes out whole, before every later one, also when the sender is cancelled.
        """

    def frames(self) -> AsyncIterator[dict[str, Any]]:
        """The worker's frames until it ends; WorkerError for bytes that are no frame."""

    def log_tail(self, lines: int = 20) -> str:
        """The last lines the worker wrote to stderr."""

    async def wait(self) -> Exit:
        """How it ended, once it has."""

    async def close(self, grace_s: float = 3.0) -> Exit:
        """End it: politely, then by force after `grace_s`."""


class Launcher(Protocol):
    async def launch(self, spec: WorkerSpec) -> Channel:
        """Start a worker; WorkerError when it cannot be started at all."""


class LocalLauncher:
    """Starts workers as processes of this machine."""

    async def launch(self, spec: WorkerSpec) -> Channel:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ} | dict(spec.env)
        try:
            process = await asyncio.create_subprocess_exec(
                *spec.argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment,
                cwd=spec.cwd,
                limit=MAX_FRAME,
                # Ctrl-C in the terminal is the host's to handle: it drains, then closes its workers.
                start_new_session=True,
            )
        except OSError as error:
            raise WorkerError(
                f"the worker {spec.argv[0]} cannot be started: {error}",
                help="`paceline runtime ls` shows the runtimes; installing the runtime again mends its files",
            ) from error
        return _ProcessChannel(process)


class _ProcessChannel:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._log: deque[bytes] = deque()
        self._log_size = 0
        self._log_task = asyncio.create_task(self._read_log())

    async def send(self, frame: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(ConnectionError, RuntimeError):
            self._process.stdin.write(json.dumps(frame, separators=(",", ":")).encode() + b"\n")
            await self._process.stdin.drain()

    async def frames(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:
                raise WorkerError(f"the worker sent a frame longer than {MAX_FRAME} bytes") from None
            if not line:
                return
            try:
                frame = parse(line)
            except ValueError:
                frame = None
            if not isinstance(frame, dict):
                raise WorkerError(f"the worker wrote something that is no frame: {line[:120]!r}")
            yield frame

    def log_tail(self, lines: int = 20) -> str:
        text = b"".join(self._log).decode("utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    async def wait(self) -> Exit:
        code = await ended(self._process)
        # The last words may still be in the pipe; a grandchild that holds it open must not keep us.
        await asyncio.wait([self._log_task], timeout=1.0)
        return Exit(code=code) if code >= 0 else Exit(signal=-code)

    async def close(self, grace_s: float = 3.0) -> Exit:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(ended(self._process), grace_s)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
        return await self.wait()

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._log.append(chunk)
            self._log_size += len(chunk)
            while self._log_size - len(self._log[0]) >= _LOG_BYTES:
                self._log_size -= len(self._log.popleft())
