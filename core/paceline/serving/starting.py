"""How a model gets its worker: from the selected runtime, or from one that is known to have worked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from paceline.errors import DoesNotFitError, PacelineError, RequestError, StoreError, WorkerDied, WorkerError
from paceline.loading import LoadConfig
from paceline.serving.client import WorkerClient, WorkerInfo
from paceline.serving.configuration import check_options, fitting, load_params, selected_runtime
from paceline.serving.fit import MemoryGuard, Room, room_now
from paceline.serving.launcher import Launcher
from paceline.serving.specification import worker_of
from paceline.types import Model, ModelKind, Runtime

if TYPE_CHECKING:
    from paceline.plugins import Plugins
    from paceline.store import Store
    from paceline.store.reading import Fallback
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
    """None also where nobody can say, as the load of another was broken off."""
    draft_bytes: int = 0
    """What it says its draft took, or may still take; 0 when it does not say."""
    stays_despite: str | None = None
    """The runtime that was selected since and does not load this model as it is configured."""

    @property
    def all_bytes(self) -> int:
        """What unloading the model, with its draft, gives back."""
        return self.memory_bytes + self.draft_bytes

    async def end(self) -> None:
        """Stop it, whatever it is doing, and let its runtime go."""
        await self.client.close()
        self.use.release()

    async def room(self) -> Room:
        """What is free now beside all that it has loaded: the engine is asked anew, as it alone knows its GPUs."""
        return room_now((await self.client.initialize()).devices)

    def differs(self, config: LoadConfig) -> bool:
        """Whether anything that `config` names is otherwise here."""
        here = {**self.config.given(), "context_length": self.context_length, "parallel": self.slots}
        return any(here.get(name) != value for name, value in config.given().items())


@dataclass(frozen=True)
class Returned:
    """A runtime that did not load a model which another one loads."""

    runtime: str
    to: str
    model: str
    reason: str
    at: datetime
    held: bool
    """Whether it was given back for all models and is held; else the other one stands in for this model alone."""


def memory_of(result: Mapping[str, Any]) -> int:
    """What the answer to a `load` says that the model took, in bytes; 0 when it does not say."""
    return sum((result.get("memory") or {}).values())


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
        self._closed = False
        self._loading: set[WorkerClient] = set()
        self.returned: deque[Returned] = deque(maxlen=_REMEMBERED)

    async def close(self) -> None:
        """Start nothing more and end what starts or loads: whoever asked for it gets a WorkerError."""
        self._closed = True
        await asyncio.gather(*(client.close() for client in self._loading))

    async def start(
        self, model: Model, config: LoadConfig, *, force: bool, others: Sequence[tuple[str, int]]
    ) -> Worker:
        """A worker of the selected runtime; where that does not load the model, of one known to have worked.

        A configuration that cannot be had and memory that is not there are no runtime's fault: they are raised, and so
        is the first error of a model that no runtime loads. `force`: load also what is known not to fit. `others`: idle
        models that could make room, and what each took.
        """
        runtime = selected_runtime(self._store, model)
        try:
            return await self.start_with(runtime, model, config, force=force, others=others)
        except (RequestError, DoesNotFitError):
            raise
        except PacelineError as error:
            if self._closed:
                raise _closing() from error
            if await asyncio.to_thread(self._store.find, runtime.id) is None:  # it was removed meanwhile
                return await self.start(model, config, force=force, others=others)
            for fallback in await asyncio.to_thread(self._store.fallbacks, runtime, model.format, model.id):
                try:
                    worker = await self.start_with(fallback.runtime, model, config, force=force, others=others)
                except PacelineError:
                    continue
                try:
                    await self._settle(runtime, fallback, model, error)
                except BaseException:
                    await asyncio.shield(worker.end())
                    raise
                return worker
            raise

    async def _settle(self, runtime: Runtime, fallback: Fallback, model: Model, error: PacelineError) -> None:
        """Let what loads the model serve it from now on, or all models, and tell why."""
        good, reason = fallback.runtime, " ".join(error.message.split())
        try:
            if fallback.for_all:
                why = f"did not load {model.id}: {reason}"
                await asyncio.to_thread(self._store.give_back, runtime, good, model.format, why)
                what = f"Returned to {good.id}; {runtime.id} is held until `paceline runtime unhold`."
            else:
                noted = await asyncio.to_thread(self._store.stand_in, good, runtime, model.format, model.id, reason)
                what = (
                    f"{good.id}, which loads it, serves this model as long as {noted.instead_of} is selected; "
                    f"`paceline runtime unselect --model {model.id}` tries that again."
                )
        except StoreError as unwritten:  # the model is served all the same
            what = f"{good.id} serves it for now: {unwritten.message}"
        last_words = error.log_tail if isinstance(error, WorkerDied) else ""
        log.warning("%s does not load %s: %s. %s %s", runtime.id, model.id, reason, what, last_words)
        now = datetime.now(UTC)
        self.returned.append(Returned(runtime.id, good.id, model.id, reason, now, held=fallback.for_all))

    async def start_with(
        self, runtime: Runtime, model: Model, config: LoadConfig, *, force: bool, others: Sequence[tuple[str, int]]
    ) -> Worker:
        """A worker of this very runtime."""
        if self._closed:
            raise _closing()
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
        spec = await asyncio.to_thread(worker_of, self._plugins.engine(runtime.engine), runtime)
        started = time.monotonic()
        client = WorkerClient(await self._launcher.launch(spec), patience_s=self._patience_s)
        self._loading.add(client)
        try:
            if self._closed:
                raise _closing()
            info = await client.initialize()
            check_options(info, model, wanted)
            config = wanted.over(fitting(self._defaults, info, model))
            if not force:
                await self._guard.check(model, config, runtime, room_now(info.devices), others=others)
            options = config.options()
            if model.facts.kind is ModelKind.EMBEDDINGS:
                options["embedding"] = True
            result = await client.call("load", load_params("main", model, config, options))
            await asyncio.to_thread(self._store.note_loaded, runtime, model.format, model.id)
        except RequestError as error:
            await asyncio.shield(client.close())
            raise RequestError(error.message, help=error.help, param=(error.param or "").split(".")[-1]) from error
        except BaseException:
            await asyncio.shield(client.close())
            raise
        finally:
            self._loading.discard(client)
        context_length, slots = int(result["context_length"]), int(result.get("slots", info.slots))
        load_s = time.monotonic() - started
        return Worker(client, info, runtime, use, config, context_length, slots, load_s, memory_of(result))


def _closing() -> WorkerError:
    return WorkerError("the server ends and loads nothing more", help="ask again once it was started anew")
