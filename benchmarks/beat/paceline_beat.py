"""The echo engine of the tests with another worker: one that says a token of every request at each beat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import paceline_echo  # type: ignore[import-not-found]

from paceline import Engine, ModelFormat, Runtime, WorkerSpec, hookimpl, python_worker

PACELINE_API = 1


class Beat(paceline_echo.EchoEngine):  # type: ignore[misc]
    def worker(self, runtime: Runtime) -> WorkerSpec:
        here = Path(__file__).parent
        return python_worker(
            runtime.python, "paceline_beat_worker", here, Path(paceline_echo.__file__).parent / "_worker"
        )


@hookimpl
def paceline_engines() -> Iterator[Engine]:
    yield Beat()


@hookimpl
def paceline_formats() -> Iterator[ModelFormat]:
    yield paceline_echo.EchoFormat()
