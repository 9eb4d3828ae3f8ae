"""Long work as a process of its own: `python -m paceline.manager.errand '{"do": …, "arguments": {…}}'`.

A server runs it so, because compiling, unpacking and hashing would hold up its answers, and because a process can be
ended at any moment. Written to stdout, one JSON object a line: `{"progress": {"subject", "phase", "done", "total",
"message"}}`, and at the end `{"result": {…}}` or `{"error": {"code", "message", "help", "param"}}`. SIGTERM cancels.

With `"gate": FOLDER` in the request it also writes `{"asks": N}` before each step that computes or writes much, and
waits there, for as long as it takes, until there is a file FOLDER/N.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline import paths, refusals
from paceline.errors import PacelineError
from paceline.manager import runtime_errands, source_errands
from paceline.progress import Phase
from paceline.store import Store

if TYPE_CHECKING:
    from paceline.progress import Progress

ERRANDS = {**runtime_errands.ERRANDS, **source_errands.ERRANDS}
NICENESS = 10
_LOOK_S = 0.05


def main(text: str) -> int:
    """Run the errand that `text` describes; the exit status is 0 when a result was written."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    request = json.loads(text)
    gate = _Gate(Path(request["gate"]) if request.get("gate") else None)
    try:
        teller = partial(_teller, gate)
        result = ERRANDS[request["do"]](Store(paths.home()), teller, **request["arguments"])
    except PacelineError as error:
        _write({"error": error.describe()})
        return 1
    except OSError as error:
        refused = refusals.refusal(error)
        if refused is None:
            raise
        _write({"error": refused.describe()})
        return 1
    except KeyboardInterrupt:
        return 130
    _write({"result": result})
    return 0


class _Gate:
    """Where an errand asks whether it may go on, and waits until it may; without a `folder` it always may."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._asked = 0

    def pass_through(self) -> None:
        if self._folder is None:
            return
        self._asked += 1
        _write({"asks": self._asked})
        while not (self._folder / str(self._asked)).exists():
            time.sleep(_LOOK_S)


def _begins_much(phase: Phase, done: int) -> bool:
    """Whether packages are put into an environment next, or files compared, or the engine is started."""
    return phase is Phase.CHECK or (phase is Phase.PACKAGES and done == 0)


def _teller(gate: _Gate, subject: str | None) -> Progress:
    """A progress that is written, where it is not the same again; what begins then waits for its go-ahead."""
    last: dict[str, Any] = {}

    def tell(phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
        now = {"subject": subject, "phase": phase, "done": done, "total": total, "message": message}
        if now != last:
            last.update(now)
            _write({"progress": now})
            if _begins_much(phase, done):
                gate.pass_through()

    return tell


def _write(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # nobody listens any more
        sys.exit(main(sys.argv[1]))
