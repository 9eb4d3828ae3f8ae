"""Embeddings: OpenAI's shape on /v1/embeddings and LM Studio's /api/v0/embeddings, which is the same."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from paceline.api import sse
from paceline.api.body import read
from paceline.api.lookup import find_model
from paceline.api.schemas import EmbeddingsRequest
from paceline.api.streams import send_start, until_client_leaves

if TYPE_CHECKING:
    from starlette.requests import Request

    from paceline.library import Library
    from paceline.serving.pool import Serving
    from paceline.types import Model


class Embeddings:
    """Answers embedding requests."""

    def __init__(self, serving: Serving, library: Library) -> None:
        self._serving = serving
        self._library = library

    async def answer(self, request: Request) -> Response:
        wanted = await read(request, EmbeddingsRequest)
        model = await asyncio.to_thread(find_model, self._library, wanted.model)
        return _Answer(self._serving, model, wanted)


class _Answer(Response):
    """Embeds under the eyes of a task that waits for the client to go away."""

    def __init__(self, serving: Serving, model: Model, wanted: EmbeddingsRequest) -> None:
        super().__init__()
        self._serving, self._model, self._wanted = serving, model, wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_client_leaves(receive, self._respond(send))

    async def _respond(self, send: Send) -> None:
        wanted = self._wanted
        vectors, tokens = await self._serving.embed(self._model, wanted.input, ttl_s=wanted.ttl)
        shown = _base64 if wanted.encoding_format == "base64" else list
        body = {
            "object": "list",
            "data": [{"object": "embedding", "embedding": shown(v), "index": i} for i, v in enumerate(vectors)],
            "model": self._model.id,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        await send_start(send, 200, ((b"content-type", b"application/json"),))
        await send({"type": "http.response.body", "body": sse.dumps(body)})


def _base64(vector: list[float]) -> str:
    """The vector as OpenAI encodes it: little-endian 32-bit floats in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
