"""A worker of Paceline driven without the host: the measure that the host's own cost is taken against."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from paceline import paths, plugins
from paceline.errors import NotFoundError, WorkerError
from paceline.store import Store
from paceline.types import Runtime, WorkerSpec


@dataclass
class Generated:
    """One answer of a worker; times are seconds from the moment the request was written."""

    tokens: list[int] = field(default_factory=list)
    drafted: list[bool] = field(default_factory=list)
    """Whether the draft proposed it, of each token."""
    arrivals: list[float] = field(default_factory=list)
    """When each token batch came."""
    result: dict[str, Any] = field(default_factory=dict)
    total_s: float = 0.0


def selected_runtime(model_format: str = "gguf") -> Runtime:
    """The runtime that Paceline uses for a format. Raises NotFoundError when none is installed."""
    runtime = Store(paths.home()).selected(model_format)
    if runtime is None:
        raise NotFoundError(f"no runtime is selected for {model_format}", help="`paceline runtime get` installs one")
    return runtime


def worker_spec(runtime: Runtime) -> WorkerSpec:
    """How the runtime's engine starts its worker."""
    return plugins.load().engine(runtime.engine).worker(runtime)


class Worker:
    """A running worker."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._process = subprocess.Popen(
            spec.argv,
            env={**os.environ, **spec.env},
            cwd=spec.cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._id = 0

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one call. Raises WorkerError with the worker's message."""
        return self._run(method, [params], 1)[0].result

    def generate(
        self, prompt: str, *, max_tokens: int, draft: dict[str, Any] | None = None, **sampling: Any
    ) -> Generated:
        """One generation to its end."""
        request = {"prompt": prompt, "max_tokens": max_tokens, "sampling": sampling, "draft": draft}
        return self.generate_all([request])[0]

    def generate_all(self, requests: Sequence[Mapping[str, Any]], at_a_time: int = 1) -> list[Generated]:
        """The answers to `generate` requests as the protocol has them, in their order, so many running at a time."""
        return self._run("generate", requests, at_a_time)

    def _run(self, method: str, requests: Sequence[Mapping[str, Any]], at_a_time: int) -> list[Generated]:
        first = self._id + 1
        begun: list[float] = []
        answers = [Generated() for _ in requests]
        for request in requests[:at_a_time]:
            begun.append(self._begin(method, request))
        ended = 0
        while ended < len(requests):
            said = self._next(method)
            note = said.get("method") == "tokens"
            at = (said["params"]["request"] if note else said.get("id") or 0) - first
            if not 0 <= at < len(requests):
                continue
            answer, arrived = answers[at], time.perf_counter() - begun[at]
            if note:
                answer.arrivals.append(arrived)
                for piece in said["params"]["pieces"]:
                    answer.tokens.append(piece[0])
                    answer.drafted.append(len(piece) > 2 and piece[2])
                continue
            if "error" in said:
                raise WorkerError(f"{method}: {said['error']['message']}")
            answer.result, answer.total_s = said["result"], arrived
            ended += 1
            if len(begun) < len(requests):
                begun.append(self._begin(method, requests[len(begun)]))
        return answers

    def _begin(self, method: str, params: Mapping[str, Any]) -> float:
        """Send a request; the moment it was sent."""
        assert self._process.stdin is not None
        self._id += 1
        frame = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        start = time.perf_counter()
        self._process.stdin.write(json.dumps(frame).encode() + b"\n")
        self._process.stdin.flush()
        return start

    def _next(self, method: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the worker ended during {method}")
        said: dict[str, Any] = json.loads(line)
        return said
