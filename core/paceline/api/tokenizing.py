"""Tokens of a text and text of tokens, as the model itself has them: /api/v1/tokenize and /api/v1/detokenize."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from paceline.api.body import read
from paceline.api.lookup import find_model
from paceline.api.schemas import DetokenizeRequest, TokenizeRequest

if TYPE_CHECKING:
    from paceline.library import Library
    from paceline.serving.pool import Serving


def routes(library: Library, serving: Serving) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        wanted = await read(request, TokenizeRequest)
        model = await asyncio.to_thread(find_model, library, wanted.model)
        return {"tokens": await serving.tokenize(model, wanted.text, add_special=wanted.add_special is not False)}

    @router.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, Any]:
        wanted = await read(request, DetokenizeRequest)
        model = await asyncio.to_thread(find_model, library, wanted.model)
        return {"text": await serving.detokenize(model, wanted.tokens)}

    return router
