"""The draft model beside a main model, in the same worker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from paceline.errors import PacelineError, WorkerDied
from paceline.serving.configuration import load_params
from paceline.serving.starting import memory_of

if TYPE_CHECKING:
    from paceline.serving.fit import MemoryGuard
    from paceline.serving.starting import Worker
    from paceline.types import Model


async def ensure_draft(worker: Worker, draft: Model, guard: MemoryGuard, *, force: bool) -> str | None:
    """Have `draft` loaded in place of the draft that is there; why it is not, where it does not fit or the engine
    refuses it. One that does not fit leaves the other loaded. `force`: load also what is known not to fit."""
    if worker.draft is not None and worker.draft.id == draft.id:
        return None
    if not force:
        config = replace(worker.config, context_length=worker.context_length, parallel=worker.slots)
        room = (await worker.room()).freed(worker.draft_bytes)
        if (why := await guard.against_draft(draft, config, worker.runtime, room)) is not None:
            return why
    worker.draft = None
    try:
        options = worker.config.draft_options()
        result = await worker.client.call("load", load_params("draft", draft, worker.config, options))
    except WorkerDied:
        raise
    except PacelineError as error:
        worker.draft_bytes = 0
        return f"the draft {draft.id} could not be loaded: {error.message}"
    worker.draft, worker.draft_bytes = draft, memory_of(result)
    return None
