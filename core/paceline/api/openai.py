"""OpenAI's routes: /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from paceline.api.lookup import find_model
from paceline.api.shapes import OPENAI, openai_model

if TYPE_CHECKING:
    from paceline.api.completions import Completions
    from paceline.api.embeddings import Embeddings
    from paceline.library import Library


def routes(completions: Completions, embeddings: Embeddings, library: Library) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Every model of the library: each loads when it is first used."""
        known = await asyncio.to_thread(library.models)
        return {"object": "list", "data": [openai_model(model) for model in known]}

    @router.get("/models/{model_id:path}")
    async def model(model_id: str) -> dict[str, Any]:
        return openai_model(await asyncio.to_thread(find_model, library, model_id))

    @router.post("/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        return await completions.chat(request, OPENAI)

    @router.post("/completions", response_model=None)
    async def text(request: Request) -> Response:
        return await completions.text(request, OPENAI)

    @router.post("/embeddings", response_model=None)
    async def embed(request: Request) -> Response:
        return await embeddings.answer(request)

    return router
