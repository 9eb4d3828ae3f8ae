"""What the server's machine has, what installed engines see there, and what is wrong around Paceline."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends
from fastapi.encoders import jsonable_encoder

from paceline import paths
from paceline.api.security import requires
from paceline.manager.engine_survey import ask_engine
from paceline.survey import known_survey
from paceline.tokens import Permission

if TYPE_CHECKING:
    from paceline.api.administration import Administration


def routes(admin: Administration) -> APIRouter:
    """`/api/v1/doctor`, for who has a token with the permission `admin`: its sentences name folders and processes."""
    router = APIRouter(prefix="/api/v1", dependencies=[Depends(requires(Permission.ADMIN, admin.tokens))])

    @router.get("/doctor")
    async def doctor() -> dict[str, Any]:
        return await asyncio.to_thread(_examine, admin)

    return router


def surveyed(admin: Administration, *, refresh: bool = False) -> dict[str, Any]:
    """The facts about this machine, each with its source, and the devices that each installed engine sees.

    Drivers, compilers and engines are asked with `refresh`; without it no engine is started, and one that was not asked
    yet says so.
    """
    facts, known = known_survey(refresh=refresh), admin.plugins.engines
    cache = paths.cache()
    seen = [
        ask_engine(runtime, known[runtime.engine], admin.store, facts, cache, refresh=refresh, start=refresh)
        for runtime in admin.store.runtimes()
        if runtime.engine in known
    ]
    return {"facts": jsonable_encoder(facts), "runtimes": jsonable_encoder(seen)}


def _examine(admin: Administration) -> dict[str, Any]:
    from paceline.doctor import CHECKS, Patient, Status, examine

    patient = Patient(
        store=admin.store,
        cache=paths.cache(),
        models=(paths.models(), *paths.extra_models()),
        plugins=admin.plugins,
        environ=os.environ,
    )
    # The port is this server's own.
    findings = list(examine(patient, [name for name in CHECKS if name != "port"]))
    problems = sum(finding.status is Status.PROBLEM for finding in findings)
    return {"findings": jsonable_encoder(findings), "problems": problems}
