"""/api/v1/runtimes: runtimes are listed for everybody, and managed for who has an admin token."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.encoders import jsonable_encoder
from pydantic import Field
from starlette.responses import JSONResponse, Response

from paceline.api import machine
from paceline.api.body import read
from paceline.api.security import requires
from paceline.api.work import Change, Channel, Days, Long, Query, done, find_operation, follow
from paceline.errors import RequestError
from paceline.manager import inventory
from paceline.manager.exact import ranked_or_found
from paceline.manager.preview import preview
from paceline.preferences import Policy, preferred
from paceline.store import Store
from paceline.tokens import Permission

if TYPE_CHECKING:
    from paceline.api.administration import Administration


class One(Change):
    query: Query


class Work(Long):
    """Long work on what `query` means."""

    query: Query | None = None


class Install(Work):
    dry_run: bool | None = None
    allow_incompatible: bool | None = None
    allow_unpinned: bool | None = None
    prefer: Literal["wheel"] | None = None
    channel: Channel | None = None
    minimum_age_days: Days | None = None


class Update(Work):
    check: bool | None = None
    channel: Channel | None = None
    minimum_age_days: Days | None = None
    registry_only: bool | None = None
    allow_unpinned: bool | None = None


class Prune(Long):
    keep: Annotated[int, Field(ge=0)] | None = None
    cache: bool | None = None
    dry_run: bool | None = None


class Select(Change):
    query: Query | None = None
    latest: bool | None = None
    model: Query | None = None


class Unselect(Change):
    format: Query | None = None
    model: Query | None = None


class Rollback(Change):
    format: Query | None = None


class Hold(One):
    reason: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


class Remove(One):
    force: bool | None = None


def routes(admin: Administration) -> APIRouter:
    """Reading needs what the rest of the API needs, every change a token with the permission `admin`."""
    router = APIRouter(prefix="/api/v1/runtimes")
    _add_reads(router, admin)
    guarded = APIRouter(dependencies=[Depends(requires(Permission.ADMIN, admin.tokens))])
    _add_changes(guarded, admin)
    _add_work(guarded, admin)
    router.include_router(guarded)
    _add_one(router, admin.store)
    return router


def _add_reads(router: APIRouter, admin: Administration) -> None:
    store, plugins = admin.store, admin.plugins

    @router.get("")
    async def installed() -> dict[str, Any]:
        return await done(lambda: _installed(store))

    @router.get("/selection")
    async def selection() -> dict[str, Any]:
        return await done(lambda: _selection(store))

    @router.get("/releases")
    async def releases(query: str | None = None) -> dict[str, Any]:
        """What could be installed, best first, each with its verdict on this machine."""

        def find() -> dict[str, Any]:
            here = {r.id for r in store.runtimes()}
            found = inventory.ranked(store, plugins, query)
            return {"releases": [inventory.describe_release(r, v, installed=r.id in here) for r, v in found]}

        return await done(find)

    @router.get("/survey")
    async def survey() -> dict[str, Any]:
        """The facts about this machine, each with its source, and what engines said they see."""
        return await done(lambda: machine.surveyed(admin))

    @router.get("/updates")
    async def updates() -> dict[str, Any]:
        return admin.describe_update()

    @router.get("/operations")
    async def operations() -> dict[str, Any]:
        return {"operations": [o.describe() for o in admin.operations.all()]}

    @router.get("/operations/{id}")
    async def operation(id: str) -> dict[str, Any]:
        return find_operation(admin.operations, id).describe()


def _add_one(router: APIRouter, store: Store) -> None:
    @router.get("/{id}")
    async def one(id: str) -> dict[str, Any]:
        return await done(lambda: inventory.describe_runtime(store.get(id), store, store.selection()), param="id")


def _add_changes(router: APIRouter, admin: Administration) -> None:
    store = admin.store

    @router.post("/survey")
    async def survey(request: Request) -> dict[str, Any]:
        """Ask drivers, compilers and engines anew, whatever is remembered."""
        await read(request, Change)
        return await done(lambda: machine.surveyed(admin, refresh=True))

    @router.post("/select")
    async def select(request: Request) -> dict[str, Any]:
        wanted = await read(request, Select)
        selection = await done(lambda: _select(admin, wanted))
        admin.watch.look()
        return selection

    @router.post("/unselect")
    async def unselect(request: Request) -> dict[str, Any]:
        wanted = await read(request, Unselect)
        if (wanted.format is None) == (wanted.model is None):
            raise RequestError("give `format` or `model`, one of them", param="format")
        await done(lambda: _unselect(admin, wanted))
        admin.watch.look()
        return await done(lambda: _selection(store))

    @router.post("/rollback")
    async def rollback(request: Request) -> dict[str, Any]:
        wanted = await read(request, Rollback)
        name = wanted.format.lower() if wanted.format is not None else None
        await done(lambda: store.rollback(name), param="format")
        admin.watch.look()
        return await done(lambda: _selection(store))

    @router.post("/remove")
    async def remove(request: Request) -> dict[str, Any]:
        wanted = await read(request, Remove)
        return {"removed": await done(lambda: _remove(store, wanted.query, force=bool(wanted.force)))}

    def mark(name: str, find: Callable[[str], str], change: Callable[[str], None]) -> None:
        @router.post(f"/{name}")
        async def marked(request: Request) -> dict[str, Any]:
            wanted = await read(request, One)
            found = await done(lambda: find(wanted.query))
            await done(lambda: change(found))
            return await done(lambda: _selection(store))

    mark("pin", lambda query: store.get(query).id, store.pin)
    mark("unpin", lambda query: inventory.one_of(query, store.selection().pins, "pinned"), store.unpin)
    mark("unhold", lambda query: inventory.one_of(query, store.selection().holds, "held"), store.unhold)

    @router.post("/hold")
    async def hold(request: Request) -> dict[str, Any]:
        wanted = await read(request, Hold)
        found = await done(lambda: inventory.installed_or_known(store, admin.plugins, wanted.query))
        await done(lambda: store.hold(found, wanted.reason))
        return await done(lambda: _selection(store))


def _add_work(router: APIRouter, admin: Administration) -> None:
    operations = admin.operations

    def begin(do: str, wanted: Long, **arguments: Any) -> Response:
        query = {"query": wanted.query} if isinstance(wanted, Work) else {}
        return follow(operations, do, wanted, **query, **arguments)

    @router.post("/install", response_model=None)
    async def install(request: Request) -> Response:
        wanted, usual = await read(request, Install), admin.update
        age = wanted.minimum_age_days
        policy: dict[str, Any] = {
            "allow_incompatible": bool(wanted.allow_incompatible),
            "allow_unpinned": bool(wanted.allow_unpinned),
            "prefer": wanted.prefer or preferred(),
            "channel": wanted.channel or usual.channel,
            "minimum_age_days": usual.minimum_age_days if age is None else age,
        }
        if wanted.dry_run:
            return JSONResponse(await done(lambda: _preview(admin, wanted.query, **policy)))
        return begin("install", wanted, **policy)

    @router.post("/update", response_model=None)
    async def update(request: Request) -> Response:
        wanted, usual = await read(request, Update), admin.update
        age = wanted.minimum_age_days
        return begin(
            "update",
            wanted,
            check=bool(wanted.check),
            channel=wanted.channel or usual.channel,
            minimum_age_days=usual.minimum_age_days if age is None else age,
            registry_only=bool(wanted.registry_only),
            allow_unpinned=bool(wanted.allow_unpinned),
        )

    @router.post("/verify", response_model=None)
    async def verify(request: Request) -> Response:
        return begin("verify", await read(request, Work))

    @router.post("/repair", response_model=None)
    async def repair(request: Request) -> Response:
        return begin("repair", await read(request, Work))

    @router.post("/prune", response_model=None)
    async def prune(request: Request) -> Response:
        wanted = await read(request, Prune)
        keep = 1 if wanted.keep is None else wanted.keep
        return begin("prune", wanted, keep=keep, cache=bool(wanted.cache), dry_run=bool(wanted.dry_run))

    @router.delete("/operations/{id}")
    async def cancel(id: str) -> dict[str, Any]:
        operation = find_operation(operations, id)
        await operations.cancel(operation)
        return operation.describe()


def _installed(store: Store) -> dict[str, Any]:
    selection = store.selection()
    return {
        "runtimes": [inventory.describe_runtime(r, store, selection) for r in store.runtimes()],
        "incomplete": list(store.incomplete()),
        "selection": _selection(store),
    }


def _selection(store: Store) -> dict[str, Any]:
    return inventory.describe_selection(store.selection())


def _preview(
    admin: Administration, query: str | None, *, allow_incompatible: bool, minimum_age_days: float, **wishes: Any
) -> dict[str, Any]:
    policy = Policy(minimum_age=timedelta(days=minimum_age_days), **wishes)
    ranked = ranked_or_found(admin.store, admin.plugins, query, channel=policy.channel)
    choice = inventory.chosen(ranked, admin.store, query, policy=policy, allow_incompatible=allow_incompatible)
    return {**jsonable_encoder(preview(choice.release, admin.store)), "remarks": list(choice.remarks)}


def _select(admin: Administration, wanted: Select) -> dict[str, Any]:
    if wanted.query is None:
        if not wanted.latest or wanted.model is not None:
            raise RequestError("give a `query`; `latest` alone moves every selection", param="query")
        admin.store.select_latest()
        return _selection(admin.store)
    runtime = inventory.newest_installed(admin.store, wanted.query) if wanted.latest else admin.store.get(wanted.query)
    if wanted.model is None:
        admin.store.select(runtime)
        return _selection(admin.store)
    model = admin.library.get(wanted.model)
    if model.format not in runtime.formats:
        raise RequestError(
            f"{runtime.id} serves {', '.join(runtime.formats)}, and {model.id} is a {model.format} model",
            param="model",
        )
    admin.store.select_for_model(runtime, model.id)
    return _selection(admin.store)


def _unselect(admin: Administration, wanted: Unselect) -> None:
    store = admin.store
    chosen = store.selection()
    if wanted.model is not None:
        model = inventory.model_of(wanted.model, chosen, lambda: admin.library)
        if model not in chosen.models and model not in chosen.stand_ins_in_force():
            raise RequestError(f"model {model} has no runtime of its own", param="model")
        store.unselect_model(model)
    elif wanted.format is not None:
        name = wanted.format.lower()
        if name not in chosen.formats:
            raise RequestError(f"nothing is selected for {name}", param="format")
        store.unselect(name)


def _remove(store: Store, query: str, *, force: bool) -> str:
    if query in store.incomplete():
        store.remove_incomplete(query, force=force)
        return query
    runtime = store.get(query)
    store.remove(runtime, force=force)
    return runtime.id
