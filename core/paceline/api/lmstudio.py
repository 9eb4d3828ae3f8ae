"""LM Studio's routes: /api/v0, and loading, unloading and listing of /api/v1."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from paceline.api.body import read
from paceline.api.errors import ApiError
from paceline.api.lookup import find_model
from paceline.api.schemas import LoadRequest, UnloadRequest
from paceline.api.shapes import LMSTUDIO, lmstudio_model, lmstudio_v1_model, lmstudio_v1_type, load_config
from paceline.errors import NotFoundError, RequestError
from paceline.loading import API_NAMES

if TYPE_CHECKING:
    from paceline.api.completions import Completions
    from paceline.api.embeddings import Embeddings
    from paceline.library import Library
    from paceline.serving.place import LoadedModel
    from paceline.serving.pool import Serving


def v0_routes(completions: Completions, embeddings: Embeddings, library: Library, serving: Serving) -> APIRouter:
    router = APIRouter(prefix="/api/v0")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        known, loaded = await asyncio.to_thread(library.models), _loaded(serving)
        return {"object": "list", "data": [lmstudio_model(m, loaded.get(m.id)) for m in known]}

    @router.get("/models/{model_id:path}")
    async def model(model_id: str) -> dict[str, Any]:
        found = await asyncio.to_thread(find_model, library, model_id)
        return lmstudio_model(found, _loaded(serving).get(found.id))

    @router.post("/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        return await completions.chat(request, LMSTUDIO)

    @router.post("/completions", response_model=None)
    async def text(request: Request) -> Response:
        return await completions.text(request, LMSTUDIO)

    @router.post("/embeddings", response_model=None)
    async def embed(request: Request) -> Response:
        return await embeddings.answer(request)

    return router


def v1_routes(library: Library, serving: Serving) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        known, loaded = await asyncio.to_thread(library.models), _loaded(serving)
        return {"models": [lmstudio_v1_model(m, loaded.get(m.id)) for m in known]}

    @router.post("/models/load")
    async def load(request: Request) -> dict[str, Any]:
        """Load a model ahead of its first use; answers when it is loaded."""
        wanted = await read(request, LoadRequest)
        model = await asyncio.to_thread(find_model, library, wanted.model)
        try:
            loaded = await serving.load(model, config=wanted.config(), ttl_s=wanted.ttl, force=bool(wanted.force))
        except RequestError as error:
            param = API_NAMES.get(error.param or "", error.param)
            raise RequestError(error.message, help=error.help, param=param) from error
        answer: dict[str, Any] = {
            "type": lmstudio_v1_type(model),
            "instance_id": model.id,
            "load_time_seconds": loaded.load_s,
            "status": "loaded",
        }
        if wanted.echo_load_config:
            answer["load_config"] = load_config(loaded)
        return answer

    @router.post("/models/unload")
    async def unload(request: Request) -> dict[str, Any]:
        wanted = await read(request, UnloadRequest)
        try:
            await serving.unload(wanted.instance_id)
        except NotFoundError as error:
            raise ApiError(404, error.message, code="model_not_found", param="instance_id") from error
        return {"instance_id": wanted.instance_id}

    return router


def _loaded(serving: Serving) -> dict[str, LoadedModel]:
    return {entry.model.id: entry for entry in serving.loaded()}
