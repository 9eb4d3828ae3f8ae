"""The process that renders chat templates: `python -P -m paceline.chat.child`, spoken to by `paceline.chat.rendering`.

A frame is a four-byte big-endian length and that many bytes of JSON. In: `{"template", "messages", "variables"}`.
Out: `{"prompt"}` or `{"failure", "line", "refused"}`. End of file on standard input ends it.

While it renders, the kernel holds a timer whose signal kills it, whatever it is doing and whether or not the host
still lives; its address space is bounded. So the worst template costs one small process and `TIME_LIMIT_S`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

from paceline.chat.template import TemplateFailure, compiled

TIME_LIMIT_S = 2.0
MEMORY_LIMIT_BYTES = 1024**3
HEADER = struct.Struct(">I")


def main() -> None:
    # A Control-C in the terminal is the host's to handle; it closes our standard input when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The protocol has the real standard output to itself; a stray print cannot break a frame.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _bound_memory()
    requests = sys.stdin.buffer
    while (frame := _read(requests)) is not None:
        _set_timer(TIME_LIMIT_S)
        answer = _render(frame)
        _set_timer(0)
        data = json.dumps(answer).encode()
        answers.write(HEADER.pack(len(data)) + data)


def _render(frame: bytes) -> dict[str, Any]:
    try:
        request = json.loads(frame)
        prompt = compiled(request["template"]).render(request["messages"], **request["variables"])
    except TemplateFailure as failure:
        return {"failure": failure.message, "line": failure.line, "refused": failure.refused}
    return {"prompt": prompt}


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    return stream.read(HEADER.unpack(header)[0])


def _set_timer(seconds: float) -> None:
    # SIGALRM keeps its default action: the process ends, even inside one long operation of C code.
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _bound_memory() -> None:
    if sys.platform != "win32":
        import resource

        # macOS refuses this limit; there the timer alone bounds what can be filled.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


if __name__ == "__main__":
    main()
