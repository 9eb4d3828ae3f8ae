"""Embeddings: OpenAI's shape on /v1/embeddings and LM Studio's /api/v0/embeddings, which is the same."""

from __future__ import annotations

import asyncio
import base64
import struct
from typing import TYPE_CHECKING, Any

from paceline.api.body import read_object, validate
from paceline.api.lookup import find_model
from paceline.api.schemas import EmbeddingsRequest, refuse_unserved

if TYPE_CHECKING:
    from starlette.requests import Request

    from paceline.library import Library
    from paceline.serving.pool import Serving


class Embeddings:
    """Answers embedding requests."""

    def __init__(self, serving: Serving, library: Library) -> None:
        self._serving = serving
        self._library = library

    async def answer(self, request: Request) -> dict[str, Any]:
        body = await read_object(request)
        refuse_unserved(body)
        wanted = validate(EmbeddingsRequest, body)
        model = await asyncio.to_thread(find_model, self._library, wanted.model)
        vectors, tokens = await self._serving.embed(model, wanted.input, ttl_s=wanted.ttl)
        shown = _base64 if wanted.encoding_format == "base64" else list
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": shown(v), "index": i} for i, v in enumerate(vectors)],
            "model": model.id,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _base64(vector: list[float]) -> str:
    """The vector as OpenAI encodes it: little-endian 32-bit floats in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
