"""Long work on runtimes as a process of its own: `python -m paceline.manager.errand '{"do": …, "arguments": {…}}'`.

A server runs it so, because compiling, unpacking and hashing would hold up its answers, and because a process can be
ended at any moment. Written to stdout, one JSON object a line: `{"progress": {"subject", "phase", "done", "total",
"message"}}`, and at the end `{"result": {…}}` or `{"error": {"code", "message", "help", "param"}}`. SIGTERM cancels.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from paceline import paths, plugins, refusals
from paceline.errors import PacelineError
from paceline.manager import inventory, updating
from paceline.manager.cleanup import clean_cache, clean_up, plan_cleanup
from paceline.manager.exact import ranked_or_found
from paceline.manager.installation import install
from paceline.manager.mending import mend, to_mend
from paceline.manager.preview import plan_here
from paceline.progress import Phase
from paceline.store import Store, health

if TYPE_CHECKING:
    from collections.abc import Callable

    from paceline.manager.updates import Update
    from paceline.plugins import Plugins
    from paceline.progress import Progress

NICENESS = 10


def main(text: str) -> int:
    """Run the errand that `text` describes; the exit status is 0 when a result was written."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    request = json.loads(text)
    try:
        result = ERRANDS[request["do"]](Store(paths.home()), plugins.load(), **request["arguments"])
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
    *,
    query: str | None,
    allow_incompatible: bool,
    allow_unpinned: bool,
    prefer: str | None,
    channel: str,
    minimum_age_days: float,
) -> dict[str, Any]:
    ranked = ranked_or_found(store, loaded, query, channel=channel)
    choice = inventory.chosen(
        ranked,
        store,
        query,
        allow_incompatible=allow_incompatible,
        allow_unpinned=allow_unpinned,
        channel=channel,
        minimum_age=timedelta(days=minimum_age_days),
        prefer=prefer,
    )
    release, before = choice.release, {r.id for r in store.runtimes()}
    runtime = install(release, store, loaded.engine(release.engine), _teller(release.id), allow_unpinned=allow_unpinned)
    return {
        "runtime": inventory.describe_runtime(runtime, store, store.selection()),
        "already_installed": runtime.id in before,
        "remarks": list(choice.remarks),
    }


def _update(
    store: Store,
    loaded: Plugins,
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
    policy = updating.Policy(channel, timedelta(days=minimum_age_days), allow_unpinned)
    tell, selected = _teller(None), updating.selected_runtimes(store, query)
    asked = updating.sources(
        store, loaded, policy, lambda said: tell(Phase.SEARCH, message=said), package_index=not registry_only
    )
    found = updating.find_updates(selected, store, loaded, asked, policy)
    would = [_update_facts(u, store) for u in found.updates]
    installed, failed = [], []
    for step in () if check else found.updates:
        progress = _teller(step.release.id)
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


def _verify(store: Store, loaded: Plugins, *, query: str | None) -> dict[str, Any]:
    found = {name: _checked(store, name) for name in inventory.installed_names(store, query)}
    return {"runtimes": [{"id": n, "state": h.state, "problems": list(h.problems)} for n, h in found.items()]}


def _repair(store: Store, loaded: Plugins, *, query: str | None) -> dict[str, Any]:
    names = to_mend(store, query)
    damaged = [name for name in names if not _checked(store, name).ok]
    for name in damaged:
        mend(name, store, loaded, _teller(name))
    return {"whole": [n for n in names if n not in damaged], "repaired": damaged}


def _prune(store: Store, loaded: Plugins, *, keep: int, cache: bool, dry_run: bool) -> dict[str, Any]:
    done = plan_cleanup(store, keep) if dry_run else clean_up(store, keep, _teller(None))
    said = clean_cache(paths.cache()) if cache and not dry_run else None
    return done.describe(said, dry_run=dry_run)


def _checked(store: Store, name: str) -> health.Health:
    _teller(name)(Phase.CHECK, message="hashing the files")
    return health.full(store.folder / name)


ERRANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "install": _install,
    "update": _update,
    "verify": _verify,
    "repair": _repair,
    "prune": _prune,
}


def _teller(subject: str | None) -> Progress:
    """A progress that is written, where it is not the same again."""
    last: dict[str, Any] = {}

    def tell(phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
        now = {"subject": subject, "phase": phase, "done": done, "total": total, "message": message}
        if now != last:
            last.update(now)
            _write({"progress": now})

    return tell


def _write(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # nobody listens any more
        sys.exit(main(sys.argv[1]))
