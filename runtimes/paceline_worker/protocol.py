"""Frames of the worker protocol: one JSON object a line, requests on stdin, answers on what was stdout."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

VERSION = 1
MAX_FRAME = 64 * 1024 * 1024

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
WORKER_ERROR = -32000

Frame: TypeAlias = Mapping[str, Any]

_encode = json.JSONEncoder(separators=(",", ":")).encode


class Fault(Exception):
    """An error the host is told: a kind of docs/worker-protocol.md, a sentence, and data."""

    def __init__(self, kind: str, message: str, *, code: int = WORKER_ERROR, **data: object) -> None:
        super().__init__(message)
        self.code = code
        self.data = {"kind": kind, **{k: v for k, v in data.items() if v is not None}}

    @classmethod
    def invalid(cls, param: str, message: str) -> Fault:
        return cls("invalid_request", message, code=INVALID_PARAMS, param=param)


def answer(request_id: object, result: Mapping[str, Any]) -> Frame:
    return {"jsonrpc": "2.0", "id": request_id, "result": result}


def failure(request_id: object, fault: Fault) -> Frame:
    error = {"code": fault.code, "message": str(fault), "data": fault.data}
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def notification(method: str, params: Mapping[str, Any]) -> Frame:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def take_stdout() -> int:
    """Keep file descriptor 1 for the protocol and send every other print to stderr; call before loading an engine."""
    sys.stdout.flush()
    protocol_fd = os.dup(1)
    os.dup2(2, 1)
    return protocol_fd


class Wire:
    """Both directions of the protocol. Writing is safe from any thread."""

    def __init__(self, output_fd: int) -> None:
        self._fd = output_fd
        self._lock = threading.Lock()

    def answer(self, request_id: object, result: Mapping[str, Any]) -> None:
        self.send([answer(request_id, result)])

    def fail(self, request_id: object, fault: Fault) -> None:
        self.send([failure(request_id, fault)])

    def notify(self, method: str, params: Mapping[str, Any]) -> None:
        self.send([notification(method, params)])

    def send(self, frames: Sequence[Frame]) -> None:
        """Write frames one after the other, at once: a system call for each would wake the host for each."""
        data = memoryview(b"".join([_encode(frame).encode() + b"\n" for frame in frames]))
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:
                os._exit(1)  # the host no longer listens

    def requests(self) -> Iterator[dict[str, Any]]:
        """Yield well-formed requests until stdin ends; answer the others with an error."""
        stdin = sys.stdin.buffer
        while line := stdin.readline(MAX_FRAME + 1):
            if len(line) > MAX_FRAME and not line.endswith(b"\n"):
                while (rest := stdin.readline(MAX_FRAME)) and not rest.endswith(b"\n"):
                    pass
                self._refuse(INVALID_REQUEST, f"the frame is longer than {MAX_FRAME} bytes")
                continue
            try:
                frame = json.loads(line)
            except (ValueError, RecursionError) as error:
                self._refuse(PARSE_ERROR, f"not JSON: {error}")
                continue
            if not _is_request(frame):
                self._refuse(INVALID_REQUEST, "a request has jsonrpc 2.0, an integer id, a method and an object params")
                continue
            frame.setdefault("params", {})
            yield frame

    def _refuse(self, code: int, message: str) -> None:
        self.fail(None, Fault("invalid_request", message, code=code))


def _is_request(frame: object) -> bool:
    return (
        isinstance(frame, dict)
        and frame.get("jsonrpc") == "2.0"
        and type(frame.get("id")) is int
        and isinstance(frame.get("method"), str)
        and isinstance(frame.get("params", {}), dict)
    )
