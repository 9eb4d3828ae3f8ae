"""Long work on runtimes as a process of its own: `python -m paceline.manager.errand '{"do": …, "arguments": {…}}'`.

A server runs it so, because compiling, unpacking and hashing would hold up its answers, and because a process can be
ended at any moment. Written to stdout, one JSON object a line: `{"progress": {"subject", "phase", "done", "total",
"message"}}`, and at the end `{"result": {…}}` or `{"error": {"code", "message", "help", "param"}}`. SIGTERM cancels.

With `"gate": FOLDER` in the request it also writes `{"asks": N}` before each step that computes or writes much, and
waits there, for as long as it takes, until there is a file FOLDER/N.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline import paths, plugins, refusals
from paceline.errors import PacelineError
from paceline.manager import inventory, updating
from paceline.manager.cleanup import clean_cache, clean_up, plan_cleanup
from paceline.manager.exact import ranked_or_found
from paceline.manager.installation import install
from paceline.manager.mending import mend, to_mend
from paceline.manager.preview import plan_here
from paceline.preferences import Policy
from paceline.progress import Phase
from paceline.store import Store, health

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from paceline.manager.updates import Update
    from paceline.plugins import Plugins
    from paceline.progress import Progress

    Teller: TypeAlias = Callable[[str | None], Progress]
    """Makes the progress of a subject, which is written."""

NICENESS = 10
_LOOK_S = 0.05


def main(text: str) -> int:
    """Run the errand that `text` describes; the exit status is 0 when a result was written."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    request = json.loads(text)
    gate = _Gate(Path(request["gate"]) if request.get("gate") else None)
    try:
        teller = partial(_teller, gate)
        result = ERRANDS[request["do"]](Store(paths.home()), plugins.load(), teller, **request["arguments"])
    except PacelineError as error:
        _write({"error": describe(error)})
        return 1
    except OSError as error:
        refused = refusals.refusal(error)
        if refused is None:
            raise
        _write({"error": describe(refused)})
        return 1
    except KeyboardInterrupt:
        return 130
    _write({"result": result})
    return 0


def describe(error: PacelineError) -> dict[str, Any]:
    """An error as JSON."""
    return {"code": error.code, "message": error.message, "help": error.help, "param": error.param}


def _install(
    store: Store,
    loaded: Plugins,
    teller: Teller,
    *,
    query: str | None,
    allow_incompatible: bool,
    allow_unpinned: bool,
    prefer: str | None,
    channel: str,
    minimum_age_days: float,
) -> dict[str, Any]:
    policy = Policy(channel, timedelta(days=minimum_age_days), prefer, allow_unpinned)
    ranked = ranked_or_found(store, loaded, query, channel=channel)
    choice = inventory.chosen(ranked, store, query, policy=policy, allow_incompatible=allow_incompatible)
    release, before = choice.release, {r.id for r in store.runtimes()}
    runtime = install(release, store, loaded.engine(release.engine), teller(release.id), allow_unpinned=allow_unpinned)
    return {
        "runtime": inventory.describe_runtime(runtime, store, store.selection()),
        "already_installed": runtime.id in before,
        "remarks": list(choice.remarks),
    }


def _update(
    store: Store,
    loaded: Plugins,
    teller: Teller,
    *,
    query: str | None,
    check: bool,
    channel: str,
    minimum_age_days: float,
    registry_only: bool,
    allow_unpinned: bool,
    hold_failed: bool,
) -> dict[str, Any]:
    """`hold_failed`: as `updating.attempt` has it."""
    policy = Policy(channel, timedelta(days=minimum_age_days), allow_unpinned=allow_unpinned)
    tell, selected = teller(None), updating.selected_runtimes(store, query)
    asked = updating.sources(
        store, loaded, policy, lambda said: tell(Phase.SEARCH, message=said), package_index=not registry_only
    )
    found = updating.find_updates(selected, store, loaded, asked, policy)
    would = [_update_facts(u, store) for u in found.updates]
    installed, failed = [], []
    for step in () if check else found.updates:
        progress = teller(step.release.id)
        made = updating.attempt(step, store, loaded, progress, allow_unpinned=allow_unpinned, hold_failed=hold_failed)
        if isinstance(made, updating.Failed):
            told = {"release": step.release.id, "stays": step.runtime.id, "held": made.held}
            failed.append({**told, **describe(made.error)})
        else:
            installed.append({"runtime": made.id, "instead_of": step.runtime.id})
    return {
        "updates": would,
        "kept": [
            {"runtime": k.runtime.id, "reason": k.reason, "newer": k.newer.id if k.newer else None} for k in found.kept
        ],
        "problems": [{"source": p.source, "failure": p.failure, "message": p.message} for p in found.problems],
        "remarks": list(found.remarks),
        "installed": installed,
        "failed": failed,
    }


def _update_facts(update: Update, store: Store) -> dict[str, Any]:
    release, plan = update.release, plan_here(update.release, store)
    return {
        "runtime": update.runtime.id,
        "formats": list(update.formats),
        "release": release.id,
        "built_here": plan.built,
        "expected_build_s": plan.expected_build_s,
        "download_bytes": plan.download_bytes,
        "notes": release.notes,
    }


def _verify(store: Store, loaded: Plugins, teller: Teller, *, query: str | None) -> dict[str, Any]:
    found = {name: _checked(store, name, teller) for name in inventory.installed_names(store, query)}
    return {"runtimes": [{"id": n, "state": h.state, "problems": list(h.problems)} for n, h in found.items()]}


def _repair(store: Store, loaded: Plugins, teller: Teller, *, query: str | None) -> dict[str, Any]:
    names = to_mend(store, query)
    damaged = [name for name in names if not _checked(store, name, teller).ok]
    for name in damaged:
        mend(name, store, loaded, teller(name))
    return {"whole": [n for n in names if n not in damaged], "repaired": damaged}


def _prune(store: Store, loaded: Plugins, teller: Teller, *, keep: int, cache: bool, dry_run: bool) -> dict[str, Any]:
    progress = teller(None)
    done = plan_cleanup(store, keep) if dry_run else clean_up(store, keep, progress)
    said = clean_cache(paths.cache(), progress) if cache and not dry_run else None
    return done.describe(said, dry_run=dry_run)


def _checked(store: Store, name: str, teller: Teller) -> health.Health:
    teller(name)(Phase.CHECK, message="hashing the files")
    return health.full(store.folder / name)


ERRANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "install": _install,
    "update": _update,
    "verify": _verify,
    "repair": _repair,
    "prune": _prune,
}


class _Gate:
    """Where an errand asks whether it may go on, and waits until it may; without a `folder` it always may."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._asked = 0

    def pass_through(self) -> None:
        if self._folder is None:
            return
        self._asked += 1
        _write({"asks": self._asked})
        while not (self._folder / str(self._asked)).exists():
            time.sleep(_LOOK_S)


def _begins_much(phase: Phase, done: int) -> bool:
    """Whether packages are put into an environment next, or files compared, or the engine is started."""
    return phase is Phase.CHECK or (phase is Phase.PACKAGES and done == 0)


def _teller(gate: _Gate, subject: str | None) -> Progress:
    """A progress that is written, where it is not the same again; what begins then waits for its go-ahead."""
    last: dict[str, Any] = {}

    def tell(phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
        now = {"subject": subject, "phase": phase, "done": done, "total": total, "message": message}
        if now != last:
            last.update(now)
            _write({"progress": now})
            if _begins_much(phase, done):
                gate.pass_through()

    return tell


def _write(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # nobody listens any more
        sys.exit(main(sys.argv[1]))
