"""/api/v1/plugins: the engine plugins that this server found, and those that are installed under its home."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.encoders import jsonable_encoder
from pydantic import Field
from starlette.responses import Response

from paceline.api.body import read
from paceline.api.security import requires
from paceline.api.work import Long, Query, done, follow
from paceline.errors import RequestError
from paceline.manager.local_packages import is_path
from paceline.manager.plugin_listing import describe_plugins, state_of
from paceline.tokens import Permission

if TYPE_CHECKING:
    from paceline.api.administration import Administration


class ChangePlugins(Long):
    """Either `dry_run`, which says what would change, or the `change` that it said."""

    names: Annotated[list[Query], Field(max_length=100)] | None = None
    dry_run: bool | None = None
    change: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


def routes(admin: Administration) -> APIRouter:
    """Reading needs what the rest of the API needs, every change the permission `trust`."""
    router = APIRouter(prefix="/api/v1/plugins")

    @router.get("")
    async def plugins() -> dict[str, Any]:
        return await done(lambda: _plugins(admin))

    guarded = APIRouter(dependencies=[Depends(requires(Permission.TRUST, admin.tokens))])
    _add_change(guarded, admin, "install")
    _add_change(guarded, admin, "update")
    _add_change(guarded, admin, "remove")
    router.include_router(guarded)
    return router


def _add_change(router: APIRouter, admin: Administration, verb: str) -> None:
    @router.post(f"/{verb}", response_model=None)
    async def changed(request: Request) -> Response:
        wanted = await read(request, ChangePlugins)
        if not wanted.names and verb != "update":
            raise RequestError(f"name the plugins to {verb}", param="names")
        if verb == "install":
            _check_names(wanted.names or [])
        if bool(wanted.dry_run) is (wanted.change is not None):
            raise RequestError(
                "give `dry_run` or `change`, one of them: nothing is changed that nobody has looked at",
                help="ask with `dry_run` what would change, and give the `change` of its answer",
                param="change",
            )
        return follow(admin.operations, f"{verb}_plugins", wanted, names=wanted.names or [], change=wanted.change)


def _check_names(names: list[str]) -> None:
    for name in names:
        if is_path(name):
            raise RequestError(
                f"{name!r} is a place on the server's machine, which this does not look at",
                help="give a name that the package index has; on that machine: `paceline plugins install`",
                param="names",
            )


def _plugins(admin: Administration) -> dict[str, Any]:
    state = state_of(admin.store.home)
    installed = [package for package in state.packages if package.entry_points]
    return {
        "plugins": describe_plugins(admin.plugins, state),
        "installed": jsonable_encoder(installed),
        "restart_needed": state.generation != admin.plugins.generation,
    }
