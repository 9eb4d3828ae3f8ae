"""The protocol: frames in, frames out, a queue for what takes time."""

from __future__ import annotations

import collections
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from paceline_echo_worker import faults
from paceline_echo_worker.generation import Generation
from paceline_echo_worker.model import Echo
from paceline_echo_worker.refusal import Refusal, number

MAX_FRAME = 64 * 1024 * 1024
QUEUE = 64


@dataclass
class Job:
    """A request that waits for the engine, or runs on it."""

    id: int
    method: str
    params: dict[str, Any]
    arrived: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)


class Worker:
    """The main thread reads requests and answers what it can at once; one engine thread does the rest in order."""

    def __init__(self, frames_in: BinaryIO, frames_out: BinaryIO) -> None:
        self._in, self._out = frames_in, frames_out
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Job | None = None
        self._main: Echo | None = None
        self._draft: Echo | None = None
        self._queue = QUEUE

    def run(self) -> None:
        threading.Thread(target=self._engine, daemon=True).start()
        while line := self._in.readline(MAX_FRAME + 1):
            if line.endswith(b"\n"):
                self._receive(line)
            elif len(line) > MAX_FRAME:
                while line and not line.endswith(b"\n"):
                    line = self._in.readline(MAX_FRAME)
                self._refuse(None, Refusal(-32600, f"a frame is at most {MAX_FRAME} bytes"))

    # What arrives

    def _receive(self, line: bytes) -> None:
        try:
            frame = json.loads(line)
        except (ValueError, RecursionError) as error:
            return self._refuse(None, Refusal(-32700, f"not JSON: {error}"))
        fields = frame if isinstance(frame, dict) else {}
        id, method, params = fields.get("id"), fields.get("method"), fields.get("params", {})
        if (
            fields.get("jsonrpc") != "2.0"
            or type(id) is not int
            or not isinstance(method, str)
            or not isinstance(params, dict)
        ):
            return self._refuse(None, Refusal(-32600, "not a JSON-RPC 2.0 request with an integer id"))
        try:
            if method in ("load", "unload", "generate"):
                with self._changed:
                    if method == "generate":
                        self._check_queue()
                    self._waiting.append(Job(id, method, params))
                    self._changed.notify()
                return None
            if method not in ("initialize", "health", "cancel", "tokenize", "detokenize"):
                raise Refusal(-32601, f"no method {method!r}", kind="unsupported")
            self._answer(id, getattr(self, f"_{method}")(params))
        except Refusal as refusal:
            self._refuse(id, refusal)
        except faults.Failure as failure:
            self._refuse(id, Refusal.of(str(failure), "engine_failed"))
        except Exception as error:
            self._refuse(id, Refusal(-32603, f"{type(error).__name__}: {error}", kind="engine_failed"))

    def _check_queue(self) -> None:
        """Refuse a generation when too many wait; one that finds the engine idle does not wait."""
        ahead = [*self._waiting, *([self._running] if self._running else [])]
        waiting = sum(job.method == "generate" for job in ahead) - 1
        if waiting >= self._queue:
            help = "send it again later"
            raise Refusal.of("too many requests wait", "overloaded", waiting=waiting, limit=self._queue, help=help)

    def _initialize(self, params: dict[str, Any]) -> dict[str, Any]:
        faults.strike(faults.of_environment(), "initialize", self._out)
        if params.get("protocol") != 1:
            theirs = params.get("protocol")
            raise Refusal.of(
                f"protocol {theirs!r} is unknown, this worker speaks 1", "invalid_request", param="protocol"
            )
        features = ["generate", "draft", "tokenize", "logprobs", "lookup"]
        devices = [{"name": "CPU", "kind": "cpu", "memory_bytes": None}]
        engine = {"engine": "echo", "version": "1.0.0"}
        options = {"load_options": ["queue"]}
        return {"protocol": 1, **engine, "features": features, "devices": devices, "slots": 1, **options}

    def _health(self, params: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            running = [self._running.id] if self._running else []
            waiting = [job.id for job in self._waiting]
        return {"state": "busy" if running or waiting else "idle", "running": running, "waiting": waiting}

    def _cancel(self, params: dict[str, Any]) -> dict[str, Any]:
        request = params.get("request")
        if type(request) is not int:
            raise Refusal.of("`request` is no integer", "invalid_request", param="request")
        with self._changed:
            waiting = next((job for job in self._waiting if job.id == request), None)
            if waiting:
                self._waiting.remove(waiting)
            elif self._running and self._running.id == request:
                self._running.cancelled.set()
        if waiting:
            self._refuse(request, Refusal.of("cancelled before it started", "cancelled"))
        return {}

    def _tokenize(self, params: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(params.get("text"), str):
            raise Refusal.of("`text` is no string", "invalid_request", param="text")
        return {"tokens": self._model().encode(params["text"])}

    def _detokenize(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"text": self._model().decode(self._model().checked(params.get("tokens"), "tokens"))}

    # What the engine thread does

    def _engine(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                job = self._running = self._waiting.popleft()
            try:
                result, refusal = getattr(self, f"_{job.method}")(job), None
            except Refusal as error:
                result, refusal = None, error
            except faults.Failure as failure:
                result, refusal = None, Refusal.of(str(failure), "engine_failed")
            except Exception as error:
                result, refusal = None, Refusal.of(f"{type(error).__name__}: {error}", "engine_failed")
            with self._changed:
                self._running = None
            if refusal:
                self._refuse(job.id, refusal)
            else:
                self._answer(job.id, result)

    def _load(self, job: Job) -> dict[str, Any]:
        started = time.monotonic()
        role = _role(job.params)
        model = Echo.load(job.params, self._out)
        queue = number(job.params.get("options") or {}, "queue", QUEUE, at_least=0)
        if role == "main":
            self._queue = queue
            self._main, self._draft = model, None
        else:
            self._model()
            self._draft = model
        self._notify("progress", job.id, fraction=1.0)
        size, length = model.size, model.context_length
        told = {} if model.memory is None else {"memory": model.memory}
        return {"context_length": length, "vocabulary": size, "load_s": time.monotonic() - started, **told}

    def _unload(self, job: Job) -> dict[str, Any]:
        self._draft = None
        if _role(job.params) == "main":
            self._main = None
        return {}

    def _generate(self, job: Job) -> dict[str, Any]:
        started = time.monotonic()
        generation = Generation(self._model(), self._draft, job.params)
        for pieces in generation.steps(job.cancelled, self._out):
            self._notify("tokens", job.id, pieces=pieces)
        times = {"queue_s": started - job.arrived, "prompt_s": 0.0, "generation_s": time.monotonic() - started}
        return generation.result() | times

    def _model(self) -> Echo:
        if self._main is None:
            raise Refusal.of("no model is loaded", "not_loaded")
        return self._main

    # What is sent

    def _notify(self, method: str, request: int, **params: Any) -> None:
        self._send({"jsonrpc": "2.0", "method": method, "params": {"request": request, **params}})

    def _answer(self, id: int, result: Any) -> None:
        self._send({"jsonrpc": "2.0", "id": id, "result": result})

    def _refuse(self, id: int | None, refusal: Refusal) -> None:
        self._send({"jsonrpc": "2.0", "id": id, "error": refusal.frame()})

    def _send(self, frame: dict[str, Any]) -> None:
        data = json.dumps(frame).encode() + b"\n"
        with self._writing:
            try:
                self._out.write(data)
                self._out.flush()
            except OSError:
                os._exit(0)  # nobody reads any more


def _role(params: dict[str, Any]) -> str:
    role = params.get("role")
    if role not in ("main", "draft"):
        raise Refusal.of(f"`role` is {role!r}, not `main` or `draft`", "invalid_request", param="role")
    return str(role)


def main() -> None:
    # File descriptor 1 belongs to the protocol; what anybody prints goes to the log.
    frames_out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    Worker(sys.stdin.buffer, frames_out).run()
    os._exit(0)  # end of file on standard input: at once, whatever the engine thread is doing


if __name__ == "__main__":
    main()
