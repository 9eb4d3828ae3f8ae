"""The API as one ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

import paceline
from paceline.api import bundles, errors, lmstudio, machine, openai, plugins, registries, runtimes, tokenizing
from paceline.api.completions import Completions
from paceline.api.embeddings import Embeddings
from paceline.api.security import LocalOnly, TokensOnly
from paceline.chat import Renderer

if TYPE_CHECKING:
    from paceline.api.administration import Administration
    from paceline.library import Library
    from paceline.serving.pool import Serving
    from paceline.tokens import Tokens


def create_app(
    serving: Serving,
    library: Library,
    *,
    bind: str = "127.0.0.1",
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    required: Tokens | None = None,
    administration: Administration | None = None,
) -> FastAPI:
    """The application that serves `library` through `serving`; it closes `serving` when it shuts down.

    `bind` is the address the server will listen on: on loopback, the Host header must name loopback or one of
    `allowed_hosts`. Scripts of web pages get in from loopback origins and `allowed_origins` (`https://host[:port]`).
    Every request must carry one of the tokens `required`. With `administration` runtimes, and where they come from, are
    listed and managed, too.
    """
    renderer = Renderer()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await renderer.start()
        if administration is not None:
            administration.begin()
        try:
            yield
        finally:
            if administration is not None:
                await administration.close()
            await renderer.close()
            await serving.close()

    app = FastAPI(title="Paceline", version=paceline.__version__, lifespan=lifespan, openapi_url=None)
    errors.install(app)
    if required is not None:
        app.add_middleware(TokensOnly, tokens=required)
    app.add_middleware(LocalOnly, bind=bind, hosts=tuple(allowed_hosts), origins=tuple(allowed_origins))
    completions = Completions(serving, library, renderer)
    embeddings = Embeddings(serving, library)
    app.include_router(openai.routes(completions, embeddings, library))
    app.include_router(lmstudio.v0_routes(completions, embeddings, library, serving))
    app.include_router(lmstudio.v1_routes(library, serving))
    app.include_router(tokenizing.routes(library, serving))
    if administration is not None:
        app.include_router(runtimes.routes(administration))
        app.include_router(registries.routes(administration))
        app.include_router(bundles.routes(administration))
        app.include_router(plugins.routes(administration))
        app.include_router(machine.routes(administration))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """That the server answers, and what it has loaded."""
        return {
            "status": "ok",
            "version": paceline.__version__,
            "loaded": [
                {
                    "model": entry.model.id,
                    "draft": entry.draft.id if entry.draft else None,
                    "runtime": entry.runtime.id,
                    "context_length": entry.context_length,
                    "load_s": entry.load_s,
                    "running": entry.running,
                    "features": list(entry.features),
                }
                for entry in serving.loaded()
            ],
        }

    return app
