"""A worker of Paceline driven without the host: the measure that the host's own cost is taken against."""

from __future__ import annotations

import json
import os
import subprocess
import time
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
    """A running worker, one request at a time."""

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
        return self._run(method, params).result

    def generate(
        self, prompt: str, *, max_tokens: int, draft: dict[str, Any] | None = None, **sampling: Any
    ) -> Generated:
        """One generation to its end."""
        return self._run("generate", {"prompt": prompt, "max_tokens": max_tokens, "sampling": sampling, "draft": draft})

    def _run(self, method: str, params: dict[str, Any]) -> Generated:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._id += 1
        frame = {"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}
        answer = Generated()
        start = time.perf_counter()
        self._process.stdin.write(json.dumps(frame).encode() + b"\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            arrived = time.perf_counter() - start
            said = json.loads(line)
            if said.get("method") == "tokens":
                answer.arrivals.append(arrived)
                answer.tokens.extend(piece[0] for piece in said["params"]["pieces"])
            elif said.get("id") == self._id:
                if "error" in said:
                    raise WorkerError(f"{method}: {said['error']['message']}")
                answer.result, answer.total_s = said["result"], arrived
                return answer
        raise WorkerError(f"the worker ended during {method}")
