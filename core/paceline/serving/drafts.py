"""The draft model beside a main model, in the same worker."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from paceline.errors import PacelineError, WorkerDied
from paceline.serving.configuration import load_params

if TYPE_CHECKING:
    from paceline.serving.fit import MemoryGuard
    from paceline.serving.starting import Worker
    from paceline.types import Model


async def ensure_draft(worker: Worker, draft: Model, guard: MemoryGuard, *, force: bool) -> str | None:
    """Have `draft` loaded in place of the draft that is there; why it is not, where it does not fit or the engine
    refuses it. `force`: load also what is known not to fit."""
    if worker.draft is not None and worker.draft.id == draft.id:
        return None
    worker.draft = None
    if not force:
        config = replace(worker.config, context_length=worker.context_length, parallel=worker.slots)
        if (why := await guard.against_draft(draft, config, worker.runtime, await worker.room())) is not None:
            return why
    try:
        options = worker.config.draft_options()
        await worker.client.call("load", load_params("draft", draft, worker.config, options))
    except WorkerDied:
        raise
    except PacelineError as error:
        return f"the draft {draft.id} could not be loaded: {error.message}"
    worker.draft = draft
    return None
