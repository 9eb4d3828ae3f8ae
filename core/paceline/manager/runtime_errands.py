"""Long work on runtimes, as `manager.errand` does it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from paceline import paths
from paceline.manager import inventory, mending, plugin_generations, updating
from paceline.manager.cleanup import clean_up, plan_cleanup
from paceline.manager.exact import ranked_or_found
from paceline.manager.installation import install
from paceline.manager.preview import plan_here
from paceline.packages import cache as download_cache
from paceline.preferences import Policy
from paceline.progress import Phase
from paceline.store import health

if TYPE_CHECKING:
    from collections.abc import Callable

    from paceline.manager.updates import Update
    from paceline.progress import Teller
    from paceline.store import Store


def _install(
    store: Store,
    teller: Teller,
    *,
    query: str | None,
    allow_incompatible: bool,
    allow_unpinned: bool,
    prefer: str | None,
    channel: str,
    minimum_age_days: float,
) -> dict[str, Any]:
    loaded = plugin_generations.loaded()
    policy = Policy(channel, timedelta(days=minimum_age_days), prefer, allow_unpinned)
    ranked = ranked_or_found(store, loaded, query, channel=channel)
    choice = inventory.chosen(ranked, store, query, policy=policy, allow_incompatible=allow_incompatible)
    release, already = choice.release, plan_here(choice.release, store).already_installed
    runtime = install(release, store, loaded.engine(release.engine), teller(release.id), allow_unpinned=allow_unpinned)
    return {
        "runtime": inventory.describe_runtime(runtime, store, store.selection()),
        "already_installed": already,
        "remarks": list(choice.remarks),
    }


def _update(
    store: Store,
    teller: Teller,
    *,
    query: str | None,
    check: bool,
    channel: str,
    minimum_age_days: float,
    registry_only: bool,
    allow_unpinned: bool,
) -> dict[str, Any]:
    loaded = plugin_generations.loaded()
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
        made = updating.attempt(step, store, loaded, progress, allow_unpinned=allow_unpinned)
        if isinstance(made, updating.Failed):
            told = {"release": step.release.id, "stays": step.runtime.id, "held": made.held}
            failed.append({**told, **made.error.describe()})
        else:
            done = {"runtime": made.runtime.id, "instead_of": step.runtime.id, "formats": list(made.formats)}
            installed.append(done)
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


def _verify(store: Store, teller: Teller, *, query: str | None) -> dict[str, Any]:
    found = {name: _checked(store, name, teller) for name in inventory.installed_names(store, query)}
    return {"runtimes": [{"id": n, "state": h.state, "problems": list(h.problems)} for n, h in found.items()]}


def _repair(store: Store, teller: Teller, *, query: str | None) -> dict[str, Any]:
    names = mending.to_mend(store, query)
    damaged = [name for name in names if not _checked(store, name, teller).ok]
    loaded, failed = plugin_generations.loaded(), {}
    for name in damaged:
        if (error := mending.attempt(name, store, loaded, teller(name))) is not None:
            failed[name] = error
    return mending.describe(names, damaged, failed)


def _prune(store: Store, teller: Teller, *, keep: int, cache: bool, dry_run: bool) -> dict[str, Any]:
    progress = teller(None)
    done = plan_cleanup(store, keep) if dry_run else clean_up(store, keep, progress)
    parts = None
    if cache:
        parts = download_cache.look(paths.cache()) if dry_run else download_cache.clear(paths.cache(), progress)
    return done.describe(parts, dry_run=dry_run)


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
