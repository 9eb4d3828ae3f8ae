"""The echo engine as a Paceline plugin."""

from collections.abc import Iterator

from paceline import Engine, ModelFormat, hookimpl
from paceline_echo.engine import EchoEngine
from paceline_echo.format import EchoFormat

PACELINE_API = 1


@hookimpl
def paceline_engines() -> Iterator[Engine]:
    yield EchoEngine()


@hookimpl
def paceline_formats() -> Iterator[ModelFormat]:
    yield EchoFormat()
