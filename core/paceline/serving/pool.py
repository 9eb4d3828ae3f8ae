"""Which models are loaded, with which runtime and draft.

A model loads when it is first asked for and stays until it was idle for its time to live, until another needs its
place, or until it is unloaded. Each has a worker of its own, so one that dies takes no other with it and the next
request starts a new one. Nothing that runs is ever interrupted to make room: whoever needs a place waits for one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from paceline.errors import (
    NotFoundError,
    PacelineError,
    PairError,
    RequestError,
    StoreError,
    UnsupportedError,
    WorkerDied,
)
from paceline.loading import LoadConfig
from paceline.serving.abilities import Abilities, WayTo
from paceline.serving.client import PATIENCE_S
from paceline.serving.configuration import check_config, check_options, fitting
from paceline.serving.drafts import ensure_draft
from paceline.serving.fit import MemoryGuard
from paceline.serving.generation import Completion, GenerateParams, TokenBatch
from paceline.serving.launcher import Launcher, LocalLauncher
from paceline.serving.place import LoadedModel, Place
from paceline.serving.places import Places
from paceline.serving.starting import Returned, Starter, Worker
from paceline.types import Model, ModelKind, Runtime

if TYPE_CHECKING:
    from paceline.library.pairs import PairIndex
    from paceline.plugins import Plugins
    from paceline.store import Store

log = logging.getLogger(__name__)

DEFAULT_TTL_S = 3600.0
"""Idle time after which a model that a request loaded is unloaded; LM Studio's default."""


class Serving:
    """The loaded models. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        plugins: Plugins,
        pairs: PairIndex,
        store: Store,
        launcher: Launcher | None = None,
        max_loaded: int = 3,
        ttl_s: float | None = DEFAULT_TTL_S,
        defaults: LoadConfig | None = None,
        check_memory: bool = True,
        way_to: WayTo = lambda feature, runtime: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`max_loaded` bounds the models that requests load by themselves; those loaded by `load` do not count.

        `defaults` are for what a load leaves open, as far as the model and its engine can have them. `check_memory`:
        refuse what is known not to fit the memory that is there. `way_to` says how to get a feature that a runtime
        lacks. `patience_s`: a worker that has requests and gives no sign of life for so long, also while it loads, is
        stopped.
        """
        self._pairs = pairs
        self._store = store
        self._ttl_s = ttl_s
        self._defaults = defaults or LoadConfig()
        self._abilities = Abilities(way_to)
        self._guard = MemoryGuard(plugins, enabled=check_memory)
        self._starter = Starter(
            plugins, store, launcher or LocalLauncher(), self._guard, self._defaults, patience_s=patience_s
        )
        self._places = Places(max_loaded)
        self._began = time.monotonic()

    @asynccontextmanager
    async def lease(
        self, model: Model, *, draft: Model | None = None, ttl_s: float | None = None
    ) -> AsyncIterator[Lease]:
        """Hold `model` loaded while the block runs. Loads it first if need be.

        `ttl_s`: its time to live from now on, unless `load` loaded it. Raises PairError when `draft` cannot propose for
        it, NotFoundError when no runtime serves its format, and WorkerError when the engine refuses it.
        """
        await self._check(model, draft)
        async with self._hold(model, ttl_s) as place:
            yield Lease(self, place, draft)

    async def embed(
        self, model: Model, inputs: Sequence[str], *, ttl_s: float | None = None
    ) -> tuple[list[list[float]], int]:
        """One vector of length 1 per input, and the number of tokens read. Loads the model first if need be."""
        if model.facts.kind is not ModelKind.EMBEDDINGS:
            raise RequestError(f"{model.id} generates text and makes no embeddings", param="model")
        try:
            result = await self._call(model, "embed", {"inputs": list(inputs)}, feature="embed", ttl_s=ttl_s)
        except RequestError as error:
            if isinstance(error, UnsupportedError):
                raise
            raise RequestError(error.message, help="shorten the input", param="input") from error
        return result["embeddings"], result["prompt_tokens"]

    async def tokenize(self, model: Model, text: str, *, add_special: bool = True) -> list[int]:
        """The token ids of `text`, as those of a prompt. Loads the model first if need be.

        `add_special`: add what the model begins, and maybe ends, every prompt with.
        """
        params = {"text": text, "add_special": add_special}
        tokens: list[int] = (await self._call(model, "tokenize", params, feature="tokenize"))["tokens"]
        return tokens

    async def detokenize(self, model: Model, tokens: Sequence[int]) -> str:
        """The text of these tokens; bytes that are no whole character become U+FFFD. Loads the model if need be."""
        text: str = (await self._call(model, "detokenize", {"tokens": list(tokens)}, feature="tokenize"))["text"]
        return text

    async def _call(
        self, model: Model, method: str, params: dict[str, object], *, feature: str, ttl_s: float | None = None
    ) -> dict[str, Any]:
        """What the model's worker answers; it must have `feature`."""
        async with self._hold(model, ttl_s) as place:
            async with place.lock:
                worker = await self._ensure_loaded(place)
            await self._abilities.check(worker, feature)
            return await worker.client.call(method, params)

    @asynccontextmanager
    async def _hold(self, model: Model, ttl_s: float | None) -> AsyncIterator[Place]:
        place = self._places.of(model, self._ttl_s)
        async with place.entered(), place.lock:
            await self._ensure_loaded(place)
            place.leases += 1
            place.rest(None)
        if ttl_s is not None and not place.kept:
            place.ttl_s = ttl_s
        try:
            yield place
        finally:
            self._release(place)

    def loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(place.describe() for place in self._places if place.alive)

    @property
    def returned(self) -> tuple[Returned, ...]:
        """The runtimes that did not load a model which another one loads, the latest ones, oldest first."""
        return tuple(self._starter.returned)

    def is_busy(self) -> bool:
        """Whether a request holds a model or a model is being loaded."""
        return self._places.is_busy()

    async def quiet(self, for_s: float) -> None:
        """Wait until this was not busy for `for_s` seconds."""
        while True:
            now = time.monotonic()
            since = now if self.is_busy() else max([self._began, *(p.last_used for p in self._places)])
            if now >= since + for_s:
                return
            await asyncio.sleep(since + for_s - now)

    async def load(
        self, model: Model, *, config: LoadConfig | None = None, ttl_s: float | None = None, force: bool = False
    ) -> LoadedModel:
        """Load a model to stay: it makes no room for others.

        A loaded model stays as it is unless `config` says something else; then it loads anew once its requests are
        done. Raises RequestError for a configuration that the model or its engine cannot have, and DoesNotFitError
        when it needs more memory than there is, unless `force` says to try all the same.
        """
        config = config or LoadConfig()
        check_config(model, config)
        place = self._places.of(model, self._ttl_s)
        async with place.entered():
            place.rest(None)
            try:
                await self._load(place, config, force)
                place.ttl_s = ttl_s
            finally:
                if place.leases == 0:
                    place.rest(self._expiry(place))
            return place.describe()

    async def unload(self, model_id: str) -> None:
        """Unload a model once its running requests are done; one that loads or moves now, once that is done, too."""
        place = self._places.get(model_id)
        if place is None or (place.worker is None and not place.entry.locked()):
            loaded = ", ".join(m.model.id for m in self.loaded()) or "none"
            raise NotFoundError(f"model {model_id!r} is not loaded (loaded: {loaded})", param="instance_id")
        async with place.entered():
            await self._drained(place)
            await self._forget(place)

    async def move_idle(self) -> None:
        """Move the loaded models that nobody uses to the runtimes that are selected for them now, one after the other.

        Loads no model that is not loaded and interrupts nothing: one that is in use moves when its last request ends.
        A model that its new runtime does not load stays loaded; the log says why.
        """
        for place in self._places:
            await self._move(place)

    async def close(self) -> None:
        """End every worker, whatever it is doing, also one that starts or loads. Nothing loads from now on."""
        places = list(self._places)
        for place in places:
            place.rest(None)
        tasks = [task for p in places for task in (p.moving, p.expiring) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._starter.close()
        async with self._places.loading:  # what was loading has given up
            pass
        await asyncio.gather(*(place.stop() for place in places))

    # --- loading ---------------------------------------------------------------------------------------------------

    async def _load(self, place: Place, config: LoadConfig, force: bool) -> None:
        """Have a model loaded as `config` says, and keep it. The caller holds the place's entry."""
        model = place.model
        async with place.lock:  # after a lease's holder that replaces a dead worker
            worker = place.worker
        if worker is not None and worker.differs(config):
            with suppress(WorkerDied):  # the one that replaces it is asked
                await self._check_change(model, worker, config, force)
            await self._drained(place)
            await place.stop()
        if place.worker is None:
            place.config, place.force = config, force
        async with place.lock:
            place.keep(True)
            try:
                await self._ensure_loaded(place)
            finally:
                place.keep(place.worker is not None)
                if place.worker is None:
                    place.config, place.force = LoadConfig(), False

    async def _check_change(self, model: Model, worker: Worker, config: LoadConfig, force: bool) -> None:
        """Refuse another configuration before what is loaded goes for it."""
        check_options(worker.info, model, config)
        if not force:
            wanted = config.over(fitting(self._defaults, worker.info, model))
            room = (await worker.room()).freed(worker.all_bytes)
            await self._guard.check(model, wanted, worker.runtime, room, others=self._places.idle(model))

    async def _check(self, model: Model, draft: Model | None) -> None:
        if model.facts.kind is ModelKind.EMBEDDINGS:
            raise RequestError(f"{model.id} makes embeddings and generates no text", param="model")
        if draft is None:
            return
        runtime = self._store.selected(model.format, model.id)
        engine = runtime.engine if runtime is not None else None
        verdict = await asyncio.to_thread(self._pairs.judge, model, draft, engine=engine)
        if not verdict.ok:
            raise PairError(
                f"{draft.id} cannot be the draft of {model.id}: {verdict.message}",
                help=verdict.help or f"`paceline pairs {model.id}` lists drafts that can",
                param="draft_model",
            )

    async def _ensure_loaded(self, place: Place) -> Worker:
        """The place's worker, started and loaded if it is not. The caller holds the place's lock."""
        old, successor = place.worker, None
        if old is not None:
            if old.client.alive and (successor := self._successor(place, old)) is None:
                return old
            await place.stop()
        async with self._places.to_load(place):
            return await self._start(place, old, successor)

    async def _start(self, place: Place, old: Worker | None, successor: Runtime | None) -> Worker:
        """Load a model; one that is to move from `old` to `successor` stays where it was if nothing else will do.

        The caller holds the place's lock and the loading lock.
        """
        model, config, force, others = place.model, place.config, place.force, self._places.idle(place.model)
        try:
            place.worker = worker = await self._starter.start(model, config, force=force, others=others)
        except PacelineError as error:
            if old is None or successor is None:
                raise
            try:
                worker = await self._starter.start_with(old.runtime, model, config, force=force, others=others)
            except PacelineError:
                raise error from None
            worker.stays_despite = successor.id
            place.worker = worker
            log.warning(
                "%s stays with %s; %s does not load it as it is: %s",
                model.id,
                old.runtime.id,
                successor.id,
                error.message,
            )
        return worker

    def _successor(self, place: Place, worker: Worker) -> Runtime | None:
        """The runtime that an idle model should move to, as it was selected since the model was loaded."""
        if place.leases:
            return None
        try:
            selected = self._store.selected(place.model.format, place.model.id)
        except StoreError:  # said when something has to be loaded; what is loaded serves on
            return None
        return selected if selected and selected.id not in (worker.runtime.id, worker.stays_despite) else None

    async def _move(self, place: Place) -> None:
        """Move one model if it is loaded and should; if it is in use, when it becomes idle."""
        if place.leases == 0:  # who unloads a model in use holds its entry until then
            async with place.entered(), place.lock:
                if place.leases == 0:
                    await self._move_now(place)
                    return
        place.moves = True

    async def _move_now(self, place: Place) -> None:
        old = place.worker
        if old is None or not old.client.alive or (successor := self._successor(place, old)) is None:
            return
        await place.stop()
        async with self._places.loading:
            if not place.kept and self._places.is_wanted():  # what is asked for now goes before what was asked for once
                await self._forget(place)
                log.info("%s was unloaded for another model while it was to move to %s", place.model.id, successor.id)
                return
            try:
                new = await self._start(place, old, successor)
            except PacelineError as error:  # the next request tries again, and is told
                said = (place.model.id, old.runtime.id, successor.id, error.message)
                log.warning("%s was to move from %s to %s and is loaded no more: %s", *said)
                return
        if new.runtime.id != old.runtime.id:
            log.info("%s moved from %s to %s", place.model.id, old.runtime.id, new.runtime.id)

    # --- unloading -------------------------------------------------------------------------------------------------

    def _release(self, place: Place) -> None:
        place.leave()
        if place.leases == 0:
            place.rest(self._expiry(place))
            if place.moves:
                place.moves = False
                place.moving = asyncio.get_running_loop().create_task(self._move(place))

    def _expiry(self, place: Place) -> asyncio.TimerHandle | None:
        if place.ttl_s is None:
            return None
        return asyncio.get_running_loop().call_later(place.ttl_s, self._expire, place)

    def _expire(self, place: Place) -> None:
        async def unload() -> None:
            async with place.entered():
                if place.expired and place.leases == 0:
                    await self._forget(place)

        place.expired = True
        place.expiring = asyncio.get_running_loop().create_task(unload())

    async def _forget(self, place: Place) -> None:
        """Unload an idle model and whatever was asked for when it was loaded."""
        place.keep(False)
        place.ttl_s = self._ttl_s
        place.config, place.force = LoadConfig(), False
        await place.stop()

    async def _drained(self, place: Place) -> None:
        await self._places.until(lambda: place.leases == 0)


class Lease:
    """A loaded model, held by one request."""

    def __init__(self, serving: Serving, place: Place, draft: Model | None) -> None:
        self._serving = serving
        self._place = place
        worker = place.worker
        assert worker is not None
        self.model = place.model
        self.runtime = worker.runtime
        self.context_length = worker.context_length
        self.draft = draft

    async def generate(self, params: GenerateParams) -> AsyncIterator[TokenBatch | Completion]:
        """Stream the tokens, then the completion. Leaving early cancels the generation in the worker.

        Raises RequestError for a prompt that does not fit, UnsupportedError for what the worker's features lack,
        OverloadedError when too many requests wait, and WorkerDied when the worker ends on the way.
        """
        serving, skipped = self._serving, None
        # Under the place's lock from the draft to the request: no other request can change the draft between them.
        async with self._place.lock:
            worker = await serving._ensure_loaded(self._place)
            await serving._abilities.check_request(worker, params)
            if self.draft is not None and params.draft is not None and params.draft.model:
                skipped = await serving._abilities.lacking(worker, "draft")
                if skipped is None:
                    force = self._place.force
                    skipped = await ensure_draft(worker, self.draft, serving._guard, force=force)
                if skipped is not None:
                    params = replace(params, draft=replace(params.draft, model=False) if params.draft.lookup else None)
            stream = await worker.client.begin(params)
        try:
            async for item in stream:
                if isinstance(item, Completion) and skipped is not None:
                    item = replace(item, draft_skipped=skipped)
                yield item
        finally:
            await stream.aclose()
