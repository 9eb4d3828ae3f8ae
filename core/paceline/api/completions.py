"""One flow for all four completion routes: request to prompt, prompt to tokens, tokens to bytes.

    read and check the body -> find the models -> render the prompt -> lease the model -> relay its tokens

The answer is an ASGI response that generates while it is sent, so that one task watches the client for the whole
time: when the client goes away, the generation is cancelled, whether it streams, collects or still loads.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from paceline.api import sse
from paceline.api.arrivals import Arrival, Arrivals
from paceline.api.body import read
from paceline.api.errors import as_api_error
from paceline.api.logprobs import ShownTokens
from paceline.api.lookup import find_language_model
from paceline.api.schemas import ChatRequest, CompletionRequest, GenerationRequest
from paceline.api.shapes import CHAT, TEXT, Dialect, Shape, draft_runs
from paceline.api.streams import send_body, send_end, send_start, until_client_leaves
from paceline.errors import RequestError, TemplateError, WorkerError
from paceline.serving.generation import Completion, GenerateParams, TokenBatch
from paceline.types import Model

if TYPE_CHECKING:
    from starlette.requests import Request

    from paceline.chat import Renderer
    from paceline.library import Library
    from paceline.serving.pool import Lease, Serving

log = logging.getLogger(__name__)


class Completions:
    """Answers completion requests."""

    def __init__(self, serving: Serving, library: Library, renderer: Renderer) -> None:
        self._serving = serving
        self._library = library
        self._renderer = renderer
        self._arrivals = Arrivals()

    async def chat(self, request: Request, dialect: Dialect) -> Response:
        with self._arrivals.coming() as arrival:
            wanted = await read(request, ChatRequest)
            model, draft = await asyncio.to_thread(self._models, wanted)
            prompt = await self._renderer.prompt(model, [message.plain() for message in wanted.messages])
            keep = await self._beginning(model, wanted, prompt)
            return self._answer(wanted, model, draft, prompt, CHAT, dialect, arrival, keep=keep)

    async def text(self, request: Request, dialect: Dialect) -> Response:
        with self._arrivals.coming() as arrival:
            wanted = await read(request, CompletionRequest)
            model, draft = await asyncio.to_thread(self._models, wanted)
            return self._answer(wanted, model, draft, wanted.prompt, TEXT, dialect, arrival)

    async def _beginning(self, model: Model, wanted: ChatRequest, prompt: str) -> str:
        """What of a chat's prompt stays when the context overflows: the system's messages and, when the middle is to
        go, the first of the user (as in LM Studio)."""
        if wanted.context_overflow in (None, "stopAtLimit"):
            return ""
        system = list(itertools.takewhile(lambda message: message.role in ("system", "developer"), wanted.messages))
        lead = wanted.messages[: len(system) + (wanted.context_overflow == "truncateMiddle")]
        if not lead or len(lead) == len(wanted.messages):
            return ""
        try:
            begun = await self._renderer.prompt(model, [message.plain() for message in lead])
        except TemplateError:
            return ""  # some templates want more messages than these
        return common_beginning(begun, prompt)

    def _models(self, wanted: GenerationRequest) -> tuple[Model, Model | None]:
        model = find_language_model(self._library, wanted.model)
        draft = wanted.draft_model
        return model, find_language_model(self._library, draft, "draft_model") if draft else None

    def _answer(
        self,
        wanted: GenerationRequest,
        model: Model,
        draft: Model | None,
        prompt: str,
        shape: Shape,
        dialect: Dialect,
        arrival: Arrival,
        *,
        keep: str = "",
    ) -> Response:
        job = _Job(
            serving=self._serving,
            model=model,
            draft=draft,
            params=replace(wanted.params(prompt), context_keep=keep),
            ttl_s=wanted.ttl,
            include_usage=bool(wanted.stream_options and wanted.stream_options.include_usage),
            mark_drafted=bool(wanted.speculative and wanted.speculative.mark_drafted),
            fields={"messages": shape.prompt_field, "prompt": shape.prompt_field, **wanted.fields},
            shape=shape,
            dialect=dialect,
            arrival=arrival,
            envelope={
                "id": f"{shape.id_prefix}-{uuid.uuid4().hex}",
                "object": shape.chunk_object if wanted.stream else shape.object,
                "created": int(time.time()),
                "model": model.id,
            },
        )
        return _StreamedAnswer(job) if wanted.stream else _WholeAnswer(job)


def common_beginning(one: str, other: str) -> str:
    """The longest text that both begin with. Compares halves of what is left, not characters: texts are long here."""
    same, most = 0, min(len(one), len(other))
    while same < most:
        end = (same + most + 1) // 2
        if other.startswith(one[same:end], same):
            same = end
        else:
            most = end - 1
    return one[:same]


@dataclass(frozen=True)
class _Job:
    serving: Serving
    model: Model
    draft: Model | None
    params: GenerateParams
    ttl_s: float | None
    include_usage: bool
    mark_drafted: bool
    fields: Mapping[str, str]
    """What the request calls the parameters of the worker protocol that errors are about."""
    shape: Shape
    dialect: Dialect
    arrival: Arrival
    envelope: dict[str, Any]

    async def run(self) -> AsyncGenerator[tuple[Lease, TokenBatch | Completion], None]:
        """Lease the model and generate. Closing it cancels the generation and gives the lease back."""
        async with self.serving.lease(self.model, draft=self.draft, ttl_s=self.ttl_s) as lease:
            await self.arrival.together()
            items = cast("AsyncGenerator[TokenBatch | Completion, None]", lease.generate(self.params))
            async with aclosing(items):
                try:
                    async for item in items:
                        yield lease, item
                        if isinstance(item, Completion):
                            return
                except RequestError as error:
                    # The worker knows a prompt and a grammar, not what they were made of.
                    error.param = self.fields.get(error.param or "", error.param)
                    raise
        raise WorkerError("the worker ended a generation without saying how")


class _Answer(Response):
    """Generates under the eyes of a task that waits for the client to go away."""

    def __init__(self, job: _Job) -> None:
        super().__init__()
        self._job = job
        self._first_token: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_client_leaves(receive, self._respond(send))

    @abstractmethod
    async def _respond(self, send: Send) -> None:
        """Generate, and send the answer."""

    def _note(self, item: TokenBatch) -> None:
        if self._first_token is None and item.pieces:
            self._first_token = time.perf_counter() - self._job.arrival.at


class _WholeAnswer(_Answer):
    async def _respond(self, send: Send) -> None:
        job = self._job
        batches: list[TokenBatch] = []
        async with aclosing(job.run()) as items:
            async for lease, item in items:
                if isinstance(item, TokenBatch):
                    self._note(item)
                    batches.append(item)
                    continue
                choice = job.shape.choice("".join(b.text for b in batches), item.stop_reason.finish_reason)
                pieces = [piece for batch in batches for piece in batch.pieces]
                if job.params.logprobs is not None:
                    choice["logprobs"] = job.shape.logprobs(ShownTokens().feed(pieces))
                if job.mark_drafted:
                    choice["drafted"] = draft_runs(pieces)
                facts = job.dialect.facts(lease, job.params, item, self._first_token)
                body = {**job.envelope, "choices": [choice], "usage": job.dialect.usage(item), **facts}
        await send_start(send, 200, ((b"content-type", b"application/json"),))
        await send({"type": "http.response.body", "body": sse.dumps(body)})


class _StreamedAnswer(_Answer):
    async def _respond(self, send: Send) -> None:
        # The headers wait for the first item: whatever fails before it still gets its own HTTP status.
        async with aclosing(self._job.run()) as items:
            lease, item = await anext(items)
            await send_start(send, 200, sse.HEADERS)
            try:
                await self._relay(send, items, lease, item)
            except Exception as error:
                await send_body(send, sse.event(as_api_error(error).body()))
        await send_end(send)

    async def _relay(
        self,
        send: Send,
        items: AsyncGenerator[tuple[Lease, TokenBatch | Completion], None],
        lease: Lease,
        item: TokenBatch | Completion,
    ) -> None:
        job = self._job
        place = uuid.uuid4().hex
        texts = sse.TextEvents({**job.envelope, "choices": [job.shape.chunk_choice(place)]}, place)
        if job.shape.opening is not None:
            await send_body(send, sse.event({**job.envelope, "choices": [job.shape.opening]}))
        tokens = ShownTokens() if job.params.logprobs is not None else None
        while isinstance(item, TokenBatch):
            self._note(item)
            text = item.text
            entries = tokens.feed(item.pieces) if tokens is not None else []
            if entries or (text and (job.mark_drafted or tokens is not None)):
                choice = job.shape.chunk_choice(text)
                if tokens is not None:
                    choice["logprobs"] = job.shape.logprobs(entries)
                if job.mark_drafted:
                    choice["drafted"] = draft_runs(item.pieces)
                await send_body(send, sse.event({**job.envelope, "choices": [choice]}))
            elif text:
                await send_body(send, texts.event(text))
            _, item = await anext(items)
        last = job.shape.chunk_choice(None, item.stop_reason.finish_reason)
        facts = job.dialect.facts(lease, job.params, item, self._first_token)
        end = sse.event({**job.envelope, "choices": [last], **facts})
        if job.include_usage:
            end += sse.event({**job.envelope, "choices": [], "usage": job.dialect.usage(item)})
        await send_body(send, end + sse.DONE)
