"""Every hook a plugin can implement. A plugin is a module named by an entry point of the group `paceline`.

    from paceline import Engine, hookimpl

    PACELINE_API = 1                      # the API version this plugin was written for

    @hookimpl
    def paceline_engines():
        return [MyEngine()]

Hooks return values and change nothing. They may return any iterable, a generator too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paceline.engine import Engine, ModelFormat

API_VERSION = 1
"""Raised when a hook or a type changes in a way that breaks existing plugins; additions do not raise it."""

hookspec = pluggy.HookspecMarker("paceline")
hookimpl = pluggy.HookimplMarker("paceline")


@hookspec
def paceline_engines() -> Iterable[Engine]:  # type: ignore[empty-body]
    """The engines this plugin provides."""


@hookspec
def paceline_formats() -> Iterable[ModelFormat]:  # type: ignore[empty-body]
    """The model formats this plugin can find and read, beside the host's `gguf` and `mlx`."""
