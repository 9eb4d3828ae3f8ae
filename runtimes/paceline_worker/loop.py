"""The worker's two threads: one reads requests and answers what needs no engine, one drives the engine.

A generation is advanced step by step; between two steps the engine's thread looks at what was cancelled and what
arrived. Loading and unloading wait until the running generations are done, and nothing that came after them starts
before, so requests take effect in the order they came. A generation whose grammar is still being compiled, or whose
long prompt is being tokenized, on a thread of its own, has its slot already, and what came later may begin before it in
another. Texts to embed are computed batch by batch, those of several requests together where there is room.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from paceline_worker.backend import Backend, Generation, Preparation
from paceline_worker.loading import parse_load, parse_role
from paceline_worker.output import StopReason
from paceline_worker.protocol import (
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    VERSION,
    Fault,
    Frame,
    Wire,
    answer,
    failure,
    notification,
)
from paceline_worker.request import GenerateRequest, parse_generate

if TYPE_CHECKING:
    from concurrent.futures import Future

    from paceline_worker.embedding import Embedding

_BARRIERS = ("load", "unload")
_QUEUED = ("generate", "embed")
"""Requests of which no more may wait than the queue holds, and which can be cancelled when they have begun."""

_WAITING_PER_SLOT = 64
"""Generations and embeddings that may wait for each slot, unless the load says otherwise."""


def run(make_backend: Callable[[], Backend], output_fd: int) -> None:
    """Serve until stdin ends; never returns. `output_fd` is what `take_stdout` gave."""
    wire = Wire(output_fd)
    engine = _Engine(wire, make_backend)
    threading.Thread(target=engine.run, name="engine", daemon=True).start()
    for frame in wire.requests():
        engine.receive(frame["id"], frame["method"], frame["params"])
    sys.stderr.flush()
    os._exit(0)  # the host is gone: end now, also in the middle of a computation


@dataclass
class _Job:
    id: Any
    method: str
    params: Mapping[str, Any]
    arrived: float


@dataclass(frozen=True)
class _Preparing:
    job: _Job
    parts: Sequence[Future[Any]]
    """What other threads make for it."""
    then: Callable[[], None]
    """What to do on the engine's thread with all of them."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to wait for: all is made, or a part cannot be."""
        return all(part.done() for part in self.parts) or self._failure() is not None

    def begin(self) -> None:
        """Do it, once it is over; raises what a part failed with."""
        if (failure := self._failure()) is not None:
            self.cancel()
            raise failure
        self.then()

    def cancel(self) -> None:
        """Nobody waits for the parts any more."""
        for part in self.parts:
            part.cancel()

    def _failure(self) -> BaseException | None:
        ended = (part.exception() for part in self.parts if part.done() and not part.cancelled())
        return next((failure for failure in ended if failure is not None), None)


@dataclass
class _Running:
    job: _Job
    generation: Generation
    started: float
    prompt_done_at: float | None = None
    reported: int = 0


@dataclass
class _Embedding:
    job: _Job
    embedding: Embedding
    tell: Callable[[float], None]


class _Engine:
    def __init__(self, wire: Wire, make_backend: Callable[[], Backend]) -> None:
        self._wire = wire
        self._make_backend = make_backend
        self._wake = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._preparing: list[_Preparing] = []
        self._starting: _Job | None = None
        """The generation or embedding that the engine's thread is about to begin."""
        self._running: list[_Running] = []
        self._embedding: list[_Embedding] = []
        """Requests whose texts share batches, in the order they came."""
        self._cancelled: set[Any] = set()
        self._slots = 1
        self._queue = _WAITING_PER_SLOT

    # --- the protocol's thread -------------------------------------------------------------------------------------

    def receive(self, request_id: Any, method: str, params: Mapping[str, Any]) -> None:
        """Take one request; answers at once what must not wait for the engine."""
        if method == "health":
            with self._wake:
                running = [r.job.id for r in self._begun()]
                waiting = [job.id for job in self._pending()]
            state = "busy" if running or waiting else "idle"
            self._wire.answer(request_id, {"state": state, "running": running, "waiting": waiting})
        elif method == "cancel":
            target = params.get("request")
            if type(target) is int:
                self._cancel(target)
                self._wire.answer(request_id, {})
            else:
                self._wire.fail(request_id, Fault.invalid("request", "request must be the id of a request"))
        elif method in ("initialize", "load", "unload", "generate", "tokenize", "detokenize", "embed"):
            with self._wake:
                overload = self._overload() if method in _QUEUED else None
                if overload is None:
                    self._waiting.append(_Job(request_id, method, params, time.monotonic()))
                    self._wake.notify()
            if overload is not None:
                self._wire.fail(request_id, overload)
        else:
            self._wire.fail(request_id, Fault("unsupported", f"no method {method!r}", code=METHOD_NOT_FOUND))

    def _overload(self) -> Fault | None:
        """Why no further request may wait; those that find a free slot are not counted."""
        waiting = sum(job.method in _QUEUED for job in self._pending()) + len(self._begun()) - self._slots
        if waiting < self._queue:
            return None
        return Fault(
            "overloaded",
            f"{self._queue} requests already wait for this model",
            waiting=waiting,
            limit=self._queue,
            help="send it again later, or load the model with more slots or a longer queue",
        )

    def _pending(self) -> list[_Job]:
        """What does not run yet, in the order it came."""
        starting = [] if self._starting is None else [self._starting]
        return [*(p.job for p in self._preparing), *starting, *self._waiting]

    def _begun(self) -> list[_Running | _Embedding]:
        return [*self._running, *self._embedding]

    def _cancel(self, target: int) -> None:
        with self._wake:
            for job in self._waiting:
                if job.id == target:
                    self._waiting.remove(job)
                    self._wire.fail(job.id, _never_began())
                    self._wake.notify()  # others may have waited for it
                    return
            for preparing in self._preparing:
                if preparing.job.id == target and preparing.job.method in _QUEUED:
                    self._preparing.remove(preparing)
                    preparing.cancel()
                    self._wire.fail(target, _never_began())
                    self._wake.notify()  # its slot is free
                    return
            starting = self._starting is not None and self._starting.id == target
            if starting or any(r.job.id == target for r in self._begun()):
                self._cancelled.add(target)

    # --- the engine's thread ---------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            self._backend = self._make_backend()
            while True:
                self._admit()
                if self._running:
                    self._step()
                if self._embedding:
                    self._embed_batch()
        except BaseException:
            # Whatever broke the engine's thread leaves its state unknown: the host replaces the process.
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)

    def _admit(self) -> None:
        """Start what may start now; sleeps while there is nothing to do.

        Looks at no more than what waits when it begins, so that a flood of short requests cannot hold up a generation;
        where none ran, also at what came meanwhile for the other slots.
        """
        with self._wake:
            idle = not self._begun()
            while (found := self._next()) is None and not self._begun():
                self._wake.wait()
            left = len(self._waiting) + len(self._preparing)
            if idle:
                left = max(left, self._backend.slots)
        while found is not None:
            job = found.job if isinstance(found, _Preparing) else found
            try:
                self._start(found)
            except Exception as error:
                self._refuse(job, _fault(error))
            with self._wake:
                found = self._next() if left else None
            left -= 1

    def _next(self) -> _Job | _Preparing | None:
        """Take the oldest request that may start beside what runs."""
        for preparing in self._preparing:
            if preparing.is_over:
                self._preparing.remove(preparing)
                if preparing.job.method in _QUEUED:
                    self._starting = preparing.job
                return preparing
        for i, job in enumerate(self._waiting):
            if job.method in _BARRIERS:
                if self._begun() or self._preparing or i > 0:
                    return None
            elif not self._has_place(job):
                continue
            del self._waiting[i]
            if job.method in _QUEUED:
                self._starting = job
            return job
        return None

    def _has_place(self, job: _Job) -> bool:
        if job.method == "generate":
            preparing = sum(p.job.method == "generate" for p in self._preparing)
            return len(self._running) + preparing < self._backend.slots
        return job.method != "embed" or self._backend.joins([e.embedding for e in self._embedding])

    def _start(self, found: _Job | _Preparing) -> None:
        if isinstance(found, _Preparing):
            found.begin()
        elif found.method == "generate":
            request = parse_generate(found.params)
            self._check_features(request)
            preparation = self._backend.prepare(request)
            self._await(_Preparing(found, preparation.parts, partial(self._open, found, request, preparation)))
        elif found.method == "embed":
            self._open_embedding(found)
        elif found.method == "tokenize":
            self._tokenize(found)
        else:
            self._wire.answer(found.id, getattr(self, "_" + found.method)(found))

    def _open(self, job: _Job, request: GenerateRequest, preparation: Preparation) -> None:
        prompt, grammar = preparation.prompt, preparation.grammar
        generation = self._backend.open(
            request, None if grammar is None else grammar.result(), None if prompt is None else prompt.result()
        )
        with self._wake:
            self._running.append(_Running(job, generation, time.monotonic()))
            self._starting = None

    def _await(self, preparing: _Preparing) -> None:
        """Have a request begin as soon as what it needs is there, which may be now."""
        if preparing.is_over:
            preparing.begin()
            return
        with self._wake:
            if preparing.job.id in self._cancelled:
                self._cancelled.remove(preparing.job.id)
                preparing.cancel()
                raise _never_began()
            self._preparing.append(preparing)
            self._starting = None
        for part in preparing.parts:
            part.add_done_callback(self._prepared)

    def _refuse(self, job: _Job, fault: Fault) -> None:
        with self._wake:
            self._starting = None
            self._cancelled.discard(job.id)
        self._wire.fail(job.id, fault)

    def _prepared(self, _: Future[Any]) -> None:
        with self._wake:
            self._wake.notify()

    def _step(self) -> None:
        self._end_cancelled()
        if not self._running:
            return
        self._backend.step([r.generation for r in self._running])
        now = time.monotonic()
        said: list[Frame] = []
        for running in list(self._running):
            generation = running.generation
            if running.prompt_done_at is None:
                if generation.prompt_done >= generation.prompt_tokens:
                    running.prompt_done_at = now
                elif generation.prompt_done != running.reported:
                    running.reported = generation.prompt_done
                    progress = {"request": running.job.id, "done": running.reported, "total": generation.prompt_tokens}
                    said.append(notification("prompt", progress))
            pieces = generation.output.take()
            if pieces:
                said.append(notification("tokens", {"request": running.job.id, "pieces": pieces}))
            if generation.fault is not None:
                said.append(self._failed(running, generation.fault))
            elif generation.output.stop_reason is not None:
                said.append(self._finished(running, generation.output.stop_reason, now))
        if said:
            self._wire.send(said)

    def _end_cancelled(self) -> None:
        with self._wake:
            ended = [r for r in self._running if r.job.id in self._cancelled]
            self._cancelled.clear()
        if ended:
            self._wire.send([self._finished(each, StopReason.USER_STOPPED, time.monotonic()) for each in ended])

    def _failed(self, running: _Running, fault: Fault) -> Frame:
        with self._wake:
            self._running.remove(running)
        self._backend.close(running.generation)
        return failure(running.job.id, fault)

    def _check_features(self, request: GenerateRequest) -> None:
        """Refuse what this worker would otherwise ignore."""
        for name, asked in (("logprobs", request.logprobs), ("grammar", request.grammar)):
            if asked is not None and name not in self._backend.features:
                raise Fault(
                    "unsupported",
                    f"the {self._backend.engine} worker of this runtime ({self._backend.version}) has no {name}",
                    param=name,
                    help=f"leave {name} out, or update the runtime: `paceline runtime update`",
                )

    def _finished(self, running: _Running, reason: StopReason, now: float) -> Frame:
        with self._wake:
            self._running.remove(running)
        generation = running.generation
        self._backend.close(generation)
        prompt_end = running.prompt_done_at if running.prompt_done_at is not None else now
        acceptance = generation.acceptance
        return answer(
            running.job.id,
            {
                "stop_reason": reason,
                "stop_string": generation.output.stop_string,
                "prompt_tokens": generation.prompt_tokens,
                "cached_tokens": generation.cached_tokens,
                "completion_tokens": generation.output.count,
                "queue_s": running.started - running.job.arrived,
                "prompt_s": prompt_end - running.started,
                "generation_s": now - prompt_end,
                "acceptance": None if acceptance is None else acceptance.frame(),
                "draft_skipped": generation.draft_skipped,
                "context_dropped": generation.context_dropped,
            },
        )

    # --- embeddings ------------------------------------------------------------------------------------------------

    def _open_embedding(self, job: _Job) -> None:
        inputs = job.params.get("inputs")
        if not isinstance(inputs, list) or not all(isinstance(t, str) for t in inputs):
            raise Fault.invalid("inputs", "inputs must be an array of strings")
        opened = _Embedding(job, self._backend.open_embedding(inputs), self._telling(job))
        with self._wake:
            self._embedding.append(opened)
            self._starting = None
        opened.tell(0.0)

    def _embed_batch(self) -> None:
        with self._wake:
            ended = [e for e in self._embedding if e.job.id in self._cancelled]
            self._cancelled.clear()
        for each in ended:
            self._end_embedding(each, Fault("cancelled", "cancelled while it was embedded"))
        try:
            self._backend.embed([e.embedding for e in self._embedding])
        except Exception as error:
            fault = _fault(error)
            for each in list(self._embedding):
                self._end_embedding(each, fault)
        for each in list(self._embedding):
            embedding = each.embedding
            each.tell(1.0 - embedding.left / max(len(embedding.texts), 1))
            if not embedding.left:
                self._end_embedding(each)

    def _end_embedding(self, ended: _Embedding, fault: Fault | None = None) -> None:
        with self._wake:
            self._embedding.remove(ended)
        if fault is not None:
            self._wire.fail(ended.job.id, fault)
        else:
            embedding = ended.embedding
            self._wire.answer(ended.job.id, {"embeddings": embedding.vectors, "prompt_tokens": embedding.tokens})

    # --- other requests --------------------------------------------------------------------------------------------

    def _tokenize(self, job: _Job) -> None:
        text = job.params.get("text")
        if not isinstance(text, str):
            raise Fault.invalid("text", "text must be a string")
        tokens = self._backend.tokenize(text, job.params.get("add_special", True) is not False)
        self._await(_Preparing(job, [tokens], lambda: self._wire.answer(job.id, {"tokens": tokens.result()})))

    def _initialize(self, job: _Job) -> dict[str, Any]:
        spoken = job.params.get("protocol")
        if spoken != VERSION:
            raise Fault("unsupported", f"this worker speaks protocol {VERSION}, the host {spoken!r}")
        backend = self._backend
        return {
            "protocol": VERSION,
            "engine": backend.engine,
            "version": backend.version,
            "features": list(backend.features),
            "devices": backend.devices(),
            "slots": backend.slots,
            "load_options": [*backend.load_options, "queue"],
        }

    def _load(self, job: _Job) -> dict[str, Any]:
        role, request, queue = parse_load(job.params)
        started = time.monotonic()
        result = self._backend.load(role, request, self._telling(job))
        if role == "main":
            with self._wake:
                self._slots = self._backend.slots
                self._queue = _WAITING_PER_SLOT * self._slots if queue is None else queue
        return {**result, "load_s": time.monotonic() - started}

    def _unload(self, job: _Job) -> dict[str, Any]:
        self._backend.unload(parse_role(job.params))
        return {}

    def _detokenize(self, job: _Job) -> dict[str, Any]:
        tokens = job.params.get("tokens")
        if not isinstance(tokens, list) or not all(type(t) is int for t in tokens):
            raise Fault.invalid("tokens", "tokens must be an array of token ids")
        return {"text": self._backend.detokenize(tokens).decode("utf-8", errors="replace")}

    def _telling(self, job: _Job) -> Callable[[float], None]:
        """What tells the host how much of a request is done, each percent once."""
        told = -1.0

        def progress(fraction: float) -> None:
            nonlocal told
            if fraction - told >= 0.01 or fraction >= 1.0:
                told = fraction
                self._wire.notify("progress", {"request": job.id, "fraction": round(fraction, 4)})

        return progress


def _fault(error: Exception) -> Fault:
    """What a request is told of an error."""
    if isinstance(error, Fault):
        return error
    traceback.print_exception(error)
    return Fault("engine_failed", f"{type(error).__name__}: {error}", code=INTERNAL_ERROR)


def _never_began() -> Fault:
    return Fault("cancelled", "cancelled before it began")
