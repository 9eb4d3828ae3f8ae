"""What a worker's engine can do beyond plain generation, and what to say of one that cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from paceline.errors import PacelineError, UnsupportedError
from paceline.types import Runtime

if TYPE_CHECKING:
    from paceline.serving.generation import GenerateParams
    from paceline.serving.starting import Worker

WayTo = Callable[[str, Runtime], str | None]
"""A feature and the runtime that lacks it -> the command that brings it, None when there is none."""

_LACKS = {
    "logprobs": "gives no log probabilities",
    "grammar": "cannot hold its output to a grammar or a JSON schema",
    "lookup": "has no prompt lookup",
    "overflow": "can only stop at the end of the context",
    "embed": "makes no embeddings",
    "tokenize": "does not tell the tokens of a text",
    "draft": "cannot use a draft model",
}
"""What is said of a worker without a feature (docs/worker-protocol.md)."""


class Abilities:
    """Refuses what a worker's features lack, naming the release that has it."""

    def __init__(self, way_to: WayTo) -> None:
        """`way_to` is asked in a thread of its own."""
        self._way_to = way_to

    async def check(self, worker: Worker, feature: str) -> None:
        """Raise UnsupportedError, about the model, where the worker lacks a feature."""
        if feature not in worker.info.features:
            raise UnsupportedError(_lack(worker, feature), param="model", help=await self._help(worker, feature))

    async def check_request(self, worker: Worker, params: GenerateParams) -> None:
        """Raise UnsupportedError, about the field, where the worker lacks what a field of the request needs."""
        for feature, param in params.needs.items():
            if feature not in worker.info.features:
                help = f"leave the field out; {await self._help(worker, feature)}"
                raise UnsupportedError(_lack(worker, feature), param=param, help=help)

    async def lacking(self, worker: Worker, feature: str) -> str | None:
        """Why a request is served without a feature; None where the worker has it."""
        if feature in worker.info.features:
            return None
        return f"{_lack(worker, feature)}; {await self._help(worker, feature)}"

    async def _help(self, worker: Worker, feature: str) -> str:
        try:
            way = await asyncio.to_thread(self._way_to, feature, worker.runtime)
        except PacelineError:
            way = None
        return way or "no release that is known and runs here can do it; `paceline runtime update` looks for newer ones"


def _lack(worker: Worker, feature: str) -> str:
    return f"{worker.info.name} {_LACKS[feature]}"
