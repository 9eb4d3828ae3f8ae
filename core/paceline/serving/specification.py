"""How a worker is started, as the plugin of its engine says: asked here, and checked before anything is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from paceline.errors import PluginError
from paceline.plugin_faults import FAULTS, WAY_OUT, owner, say, show
from paceline.types import WorkerSpec

if TYPE_CHECKING:
    from paceline.engine import Engine
    from paceline.types import Runtime


def worker_of(engine: Engine, runtime: Runtime) -> WorkerSpec:
    """How `engine` starts a worker of `runtime`. Raises PluginError when it cannot say, or says what nothing starts."""
    try:
        spec = engine.worker(runtime)
    except FAULTS as error:
        raise _refused(engine, runtime, say(error)) from error
    if not _can_be_started(spec):
        raise _refused(engine, runtime, f"it answered {show(spec)}")
    return spec


def _can_be_started(spec: object) -> bool:
    if not isinstance(spec, WorkerSpec) or not isinstance(spec.argv, tuple) or not spec.argv:
        return False
    if not isinstance(spec.env, Mapping) or not isinstance(spec.cwd, str | os.PathLike | None):
        return False
    return all(isinstance(text, str) and "\0" not in text for text in (*spec.argv, *spec.env, *spec.env.values()))


def _refused(engine: Engine, runtime: Runtime, why: str) -> PluginError:
    return PluginError(
        f"the engine {owner(engine)} could not say how a worker of {runtime.id} starts: {why}", help=WAY_OUT
    )
