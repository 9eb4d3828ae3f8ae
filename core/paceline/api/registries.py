"""/api/v1/registries: the signed registries that may bring releases here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response

from paceline.api.body import read
from paceline.api.security import requires
from paceline.api.work import Change, Long, Query, done, follow
from paceline.manager import registries
from paceline.registry import trust as trusting
from paceline.tokens import Permission

if TYPE_CHECKING:
    from paceline.api.administration import Administration

MAX_TRUST_BYTES = 60_000
"""Of a request that brings a root, which becomes an argument of a process; roots in use have some thousands."""
Name = Annotated[str, Field(min_length=1, max_length=40)]


class Trust(Long):
    url: Annotated[str, Field(min_length=1, max_length=2000)]
    root: dict[str, Any]
    """The publisher's metadata/root.json."""
    name: Name | None = None


class Refresh(Long):
    names: Annotated[list[Name], Field(max_length=100)] | None = None


class Remove(Change):
    name: Query


def routes(admin: Administration) -> APIRouter:
    """Reading needs what the rest of the API needs, asking for news `admin`, changing who is trusted `trust`."""
    router = APIRouter(prefix="/api/v1/registries")
    home = admin.store.home

    @router.get("")
    async def trusted() -> dict[str, Any]:
        """Those that are trusted, and what was last verified of each; nobody is asked."""
        return await done(lambda: {"registries": [registries.describe(each) for each in trusting.trusted(home)]})

    @router.post("/refresh", response_model=None, dependencies=[Depends(requires(Permission.ADMIN, admin.tokens))])
    async def refresh(request: Request) -> Response:
        wanted = await read(request, Refresh)
        return follow(admin.operations, "refresh_registries", wanted, names=wanted.names or [])

    decides = [Depends(requires(Permission.TRUST, admin.tokens))]

    @router.post("/trust", response_model=None, dependencies=decides)
    async def trust(request: Request) -> Response:
        wanted = await read(request, Trust, MAX_TRUST_BYTES)
        told = {"url": wanted.url, "root": wanted.root, "name": wanted.name}
        return follow(admin.operations, "trust_registry", wanted, **told)

    @router.post("/remove", dependencies=decides)
    async def remove(request: Request) -> dict[str, Any]:
        """What was installed from it stays."""
        wanted = await read(request, Remove)
        await done(lambda: trusting.forget(home, wanted.name), param="name")
        return {"removed": wanted.name}

    return router
