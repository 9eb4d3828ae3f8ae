"""/api/v1/bundles: releases with all their packages in one file, which this server keeps, makes, takes and gives."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.encoders import jsonable_encoder
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response

from paceline.api.body import read
from paceline.api.errors import ApiError
from paceline.api.security import requires
from paceline.api.work import Change, Channel, Days, Long, Query, done, follow, refusing
from paceline.errors import RequestError
from paceline.manager import bundle_shelf
from paceline.manager.bundles import read_bundle
from paceline.preferences import preferred
from paceline.tokens import Permission

if TYPE_CHECKING:
    from pathlib import Path

    from paceline.api.administration import Administration

_PART = 1 << 20
_TYPES = ("application/octet-stream", "application/zip")


class One(Change):
    name: Query


class Create(Long):
    name: Query
    queries: Annotated[list[Query], Field(min_length=1, max_length=100)]
    platform: Query | None = None
    pythons: Annotated[list[Query], Field(max_length=20)] | None = None
    prefer: Literal["wheel"] | None = None
    channel: Channel | None = None
    minimum_age_days: Days | None = None
    allow_unpinned: bool | None = None


class Install(Long):
    name: Query
    allow_incompatible: bool | None = None
    allow_unpinned: bool | None = None
    dry_run: bool | None = None


def routes(admin: Administration) -> APIRouter:
    """Everything needs the permission `admin`, and bringing a bundle `trust`: what it holds is what is run."""
    router = APIRouter(prefix="/api/v1/bundles", dependencies=[Depends(requires(Permission.ADMIN, admin.tokens))])
    home, operations = admin.store.home, admin.operations

    @router.get("")
    async def bundles() -> dict[str, Any]:
        return await done(lambda: {"bundles": bundle_shelf.listed(home)})

    @router.get("/{name}")
    async def one(name: str) -> dict[str, Any]:
        """What it holds, every file compared with its hash, and whether this machine can run it."""
        return await done(lambda: _described(home, name), param="name")

    @router.get("/{name}/file", response_model=None)
    async def file(name: str) -> FileResponse:
        path = await done(lambda: bundle_shelf.find(home, name), param="name")
        return FileResponse(path, media_type=_TYPES[0], filename=name)

    @router.put("/{name}", dependencies=[Depends(requires(Permission.TRUST, admin.tokens))])
    async def bring(name: str, request: Request) -> dict[str, Any]:
        return await _received(home, name, request)

    @router.post("/create", response_model=None)
    async def create(request: Request) -> Response:
        wanted, usual = await read(request, Create), admin.update
        bundle_shelf.place(home, wanted.name)
        age = wanted.minimum_age_days
        told = {
            "queries": wanted.queries,
            "platform": wanted.platform,
            "pythons": wanted.pythons or [],
            "prefer": wanted.prefer or preferred(),
            "channel": wanted.channel or usual.channel,
            "minimum_age_days": usual.minimum_age_days if age is None else age,
            "allow_unpinned": bool(wanted.allow_unpinned),
        }
        return follow(operations, "create_bundle", wanted, name=wanted.name, **told)

    @router.post("/install", response_model=None)
    async def install(request: Request) -> Response:
        wanted = await read(request, Install)
        await done(lambda: bundle_shelf.find(home, wanted.name), param="name")
        told = {
            "allow_incompatible": bool(wanted.allow_incompatible),
            "allow_unpinned": bool(wanted.allow_unpinned),
            "dry_run": bool(wanted.dry_run),
        }
        return follow(operations, "install_bundle", wanted, name=wanted.name, **told)

    @router.post("/remove")
    async def remove(request: Request) -> dict[str, Any]:
        wanted = await read(request, One)
        await done(lambda: bundle_shelf.remove(home, wanted.name), param="name")
        return {"removed": wanted.name}

    return router


def _described(home: Path, name: str) -> dict[str, Any]:
    bundle = read_bundle(bundle_shelf.find(home, name))
    bundle.check()
    told: dict[str, Any] = jsonable_encoder(bundle_shelf.describe(bundle, judged=True))
    return told


async def _received(home: Path, name: str, request: Request) -> dict[str, Any]:
    """Take the body as the bundle `name`: written while it comes, checked whole, then kept."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", *_TYPES):
        raise ApiError(
            415, f"A bundle is sent with `Content-Type: {_TYPES[0]}`, not {kind[:100]}.", code="unsupported_media_type"
        )
    sha256 = request.query_params.get("sha256")
    if sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise RequestError("this is no sha256: it has 64 digits, 0 to 9 and a to f", param="sha256")
    announced = request.headers.get("content-length", "")
    size = int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 19 else None
    with refusing("name"), bundle_shelf.arriving(home, name, size) as draft:
        await _write(request, draft)
        bundle = await asyncio.to_thread(bundle_shelf.keep, draft, home, name, sha256)
        return await asyncio.to_thread(bundle_shelf.describe, bundle)


async def _write(request: Request, draft: Path) -> None:
    with draft.open("wb") as file:
        waiting = bytearray()
        try:
            async for part in request.stream():
                waiting += part
                if len(waiting) >= _PART:
                    await asyncio.to_thread(file.write, waiting)
                    waiting = bytearray()
        except ClientDisconnect:
            # Nobody is left to read this; it only ends the request in good order.
            raise ApiError(400, "The client went away before the bundle was complete.", code="disconnected") from None
        file.write(waiting)
