"""The echo worker, answering many requests at a time: at each beat every one of them gets its next token."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from paceline_echo_worker.__main__ import Job, Worker  # type: ignore[import-not-found]
from paceline_echo_worker.generation import Generation  # type: ignore[import-not-found]

BEAT_S = 0.005
"""An engine that says two hundred tokens a second to everybody."""
SLOTS = 16


class Beating(Worker):  # type: ignore[misc]
    def _initialize(self, params: dict[str, Any]) -> dict[str, Any]:
        return {**super()._initialize(params), "slots": SLOTS}

    def _engine(self) -> None:
        running: dict[int, tuple[Generation, Iterator[Any]]] = {}
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or running)
                jobs = [*self._waiting]
                self._waiting.clear()
            for job in jobs:
                if job.method == "generate":
                    generation = Generation(self._model(), None, job.params)
                    running[job.id] = generation, generation.steps(job.cancelled, self._out)
                else:
                    self._answer(job.id, self._done(job))
            for request, (generation, steps) in [*running.items()]:
                pieces = next(steps, None)
                if pieces is not None:
                    self._notify("tokens", request, pieces=pieces)
                    continue
                del running[request]
                times = {"queue_s": 0.0, "prompt_s": 0.0, "generation_s": 0.0}
                self._answer(request, generation.result() | times)
            time.sleep(BEAT_S)

    def _done(self, job: Job) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self, f"_{job.method}")(job)
        return answer


if __name__ == "__main__":
    frames_out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    Beating(sys.stdin.buffer, frames_out).run()
    os._exit(0)
