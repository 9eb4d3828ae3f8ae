"""Failing on purpose, where the model file, the load options or the environment ask for it (see the README)."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

Fault = dict[str, Any]


class Failure(Exception):
    """The engine failure that was asked for."""


def of_environment() -> list[Fault]:
    return list(json.loads(os.environ.get("PACELINE_ECHO_FAULTS", "[]")))


def strike(faults: list[Fault], at: str | int, frames_out: BinaryIO) -> None:
    """Do what `faults` say happens here; does not always return."""
    for fault in faults:
        if fault["at"] != at or fault.get("in", "") not in sys.prefix:
            continue
        value = fault.get("value")
        match fault["do"]:
            case "exit":
                os._exit(value if isinstance(value, int) else 1)
            case "signal":
                # To this thread, which then gets no further; one to the process may take effect later.
                signal.pthread_kill(threading.get_ident(), signal.Signals[str(value)])
            case "hang":
                threading.Event().wait()
            case "garbage":
                frames_out.write(b"\xff\xfe this is no frame\n")
                frames_out.flush()
            case "print":
                os.write(1, f"{value}\n".encode())
            case "log":
                os.write(2, f"{value}\n".encode())
            case "fail":
                raise Failure(str(value))


def ignores_cancel(faults: list[Fault]) -> bool:
    return any(fault["at"] == "cancel" and fault["do"] == "ignore" for fault in faults)


def gate(faults: list[Fault], step: int, cancelled: threading.Event) -> None:
    """Wait before a decode step until a file lets it go on, or the generation is cancelled."""
    for fault in faults:
        if fault["at"] == "step" and fault["do"] == "gate":
            folder = Path(fault["value"])
            (folder / f"at-{step}").touch()
            while not ((folder / "go").exists() or (folder / f"go-{step}").exists() or cancelled.wait(0.005)):
                pass
