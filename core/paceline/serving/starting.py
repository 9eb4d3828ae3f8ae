"""How a model gets its worker: from the selected runtime, or from the last one that worked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from paceline.errors import PacelineError, RequestError, WorkerDied
from paceline.loading import LoadConfig
from paceline.serving.client import WorkerClient, WorkerInfo
from paceline.serving.configuration import check_options, fitting, load_params, selected_runtime
from paceline.serving.fit import MemoryGuard, Room, room_now
from paceline.serving.launcher import Launcher
from paceline.types import Model, ModelKind, Runtime

if TYPE_CHECKING:
    from paceline.plugins import Plugins
    from paceline.store import Store
    from paceline.store.uses import Use

log = logging.getLogger(__name__)

_REMEMBERED = 32


@dataclass
class Worker:
    """A worker that has loaded a model."""

    client: WorkerClient
    info: WorkerInfo
    runtime: Runtime
    use: Use
    config: LoadConfig
    context_length: int
    slots: int
    load_s: float
    memory_bytes: int = 0
    """What it says it took; 0 when it does not say."""
    draft: Model | None = None

    async def room(self) -> Room:
        """What is free now beside all that it has loaded: the engine is asked anew, as it alone knows its GPUs."""
        return room_now((await self.client.initialize()).devices)

    def differs(self, config: LoadConfig) -> bool:
        """Whether anything that `config` names is otherwise here."""
        here = {**self.config.given(), "context_length": self.context_length, "parallel": self.slots}
        return any(here.get(name) != value for name, value in config.given().items())


@dataclass(frozen=True)
class Returned:
    """A runtime that did not load a model which the one before it loads, and so was given back."""

    runtime: str
    to: str
    model: str
    reason: str
    at: datetime


class Starter:
    """Starts workers and has them load their models."""

    def __init__(
        self,
        plugins: Plugins,
        store: Store,
        launcher: Launcher,
        guard: MemoryGuard,
        defaults: LoadConfig,
        *,
        patience_s: float,
    ) -> None:
        """`patience_s`: a worker that gives no sign of life for so long while it has requests is stopped."""
        self._plugins = plugins
        self._store = store
        self._launcher = launcher
        self._guard = guard
        self._defaults = defaults
        self._patience_s = patience_s
        self.returned: deque[Returned] = deque(maxlen=_REMEMBERED)

    async def start(
        self, model: Model, config: LoadConfig, *, force: bool, others: Sequence[tuple[str, int]]
    ) -> Worker:
        """A worker of the selected runtime; of the last one that worked, if that one never did and cannot load this.

        `force`: load also what is known not to fit. `others`: idle models that could make room, and what each took.
        """
        runtime = selected_runtime(self._store, model)
        try:
            return await self._start_with(runtime, model, config, force, others)
        except PacelineError as error:
            good = await asyncio.to_thread(self._store.fallback, runtime, model.format)
            if good is None:
                raise
            try:
                worker = await self._start_with(good, model, config, force, others)
            except PacelineError:
                raise error from None  # the model is to blame
            await asyncio.to_thread(self._store.fall_back, runtime, good, model.format)
            last_words = error.log_tail if isinstance(error, WorkerDied) else ""
            log.warning(
                "%s does not load %s: %s. Returned to %s; %s is held until `paceline runtime unhold`. %s",
                *(runtime.id, model.id, error.message, good.id, runtime.id, last_words),
            )
            self.returned.append(Returned(runtime.id, good.id, model.id, error.message, datetime.now(UTC)))
            return worker

    async def _start_with(
        self, runtime: Runtime, model: Model, config: LoadConfig, force: bool, others: Sequence[tuple[str, int]]
    ) -> Worker:
        use = await asyncio.to_thread(self._store.use, runtime)
        try:
            return await self._load(runtime, use, model, config, force, others)
        except BaseException:
            use.release()
            raise

    async def _load(
        self,
        runtime: Runtime,
        use: Use,
        model: Model,
        wanted: LoadConfig,
        force: bool,
        others: Sequence[tuple[str, int]],
    ) -> Worker:
        spec = self._plugins.engine(runtime.engine).worker(runtime)
        started = time.monotonic()
        client = WorkerClient(await self._launcher.launch(spec), patience_s=self._patience_s)
        try:
            info = await client.initialize()
            check_options(info, model, wanted)
            config = wanted.over(fitting(self._defaults, info, model))
            if not force:
                await self._guard.check(model, config, runtime, room_now(info.devices), others=others)
            options = config.options()
            if model.facts.kind is ModelKind.EMBEDDINGS:
                options["embedding"] = True
            result = await client.call("load", load_params("main", model, config, options))
            await asyncio.to_thread(self._store.note_loaded, runtime, model.format)
        except RequestError as error:
            await asyncio.shield(client.close())
            raise RequestError(error.message, help=error.help, param=(error.param or "").split(".")[-1]) from error
        except BaseException:
            await asyncio.shield(client.close())
            raise
        context_length, slots = int(result["context_length"]), int(result.get("slots", info.slots))
        memory = sum((result.get("memory") or {}).values())
        return Worker(client, info, runtime, use, config, context_length, slots, time.monotonic() - started, memory)
