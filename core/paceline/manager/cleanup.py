"""What can be deleted without losing anything that is needed: runtimes long unused, leftovers, logs, the cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from paceline.errors import InUseError, NotFoundError, StoreError
from paceline.manager import plugin_generations
from paceline.progress import silent
from paceline.store import transaction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paceline.packages.cache import Part
    from paceline.progress import Progress
    from paceline.store import Store
    from paceline.types import Runtime

KEPT_LOGS = 5


@dataclass(frozen=True)
class Cleanup:
    """What a clean-up deletes, or would."""

    runtimes: tuple[Runtime, ...]
    """Least recently used first."""
    incomplete: tuple[str, ...]
    """Folders among the runtimes that do not count as installed, and that nobody needs."""
    leftovers: tuple[Path, ...]
    """Of installations that ended on the way, and generations of plugins that no process needs any more."""
    logs: tuple[Path, ...]
    """Of failed installations, but for the newest."""
    kept: tuple[str, ...]
    """Why each runtime, and each such folder, that is needed stays, in sentences."""
    sizes: Mapping[str, int | None]
    """By id, the bytes of each installed runtime, as its manifest has them."""

    def describe(self, cache: Sequence[Part] | None, *, dry_run: bool) -> dict[str, Any]:
        """As JSON. `cache`: the parts of the download cache; None when nobody looked at it."""
        return {
            "runtimes": [{"id": r.id, "size_bytes": self.sizes[r.id]} for r in self.runtimes],
            "incomplete": list(self.incomplete),
            "leftovers": [str(path) for path in self.leftovers],
            "logs": [str(path) for path in self.logs],
            "kept": list(self.kept),
            "cache": [asdict(part) for part in cache] if cache is not None else None,
            "dry_run": dry_run,
        }


def plan_cleanup(store: Store, keep: int) -> Cleanup:
    """What `clean_up` would delete. An installation under way has its folder among the leftovers; it is waited for."""
    needed, idle, incomplete = [], [], []
    chosen, installed = store.selection(), store.runtimes()
    for runtime in installed:
        if reason := store.protection(runtime, chosen) or store.use_of(runtime.id):
            needed.append(reason)
        else:
            idle.append(runtime)
    for name in store.incomplete():
        if reason := store.protection_of_incomplete(name, chosen) or store.use_of(name):
            needed.append(reason)
        else:
            incomplete.append(name)
    idle.sort(key=lambda runtime: _last_needed(store, runtime))
    return Cleanup(
        runtimes=tuple(idle[: max(0, len(idle) - keep)]),
        incomplete=tuple(incomplete),
        leftovers=(*_children(store.staging), *plugin_generations.unneeded(store)),
        logs=tuple(sorted(_children(store.logs), key=_modified)[:-KEPT_LOGS]),
        kept=tuple(needed),
        sizes={runtime.id: store.size(runtime) for runtime in installed},
    )


def clean_up(store: Store, keep: int, progress: Progress = silent) -> Cleanup:
    """Delete what nobody needs, keeping the `keep` most recently used of the idle runtimes; returns what went.

    A runtime that is selected, pinned, what a rollback would return to or in use by a process is never deleted, even
    when its manifest is damaged, nor what a newer Paceline installed. Waits for an installation that is under way.
    """
    plan = plan_cleanup(store, keep)
    removed, incomplete = [], []
    with store.installing(progress) as leftovers:
        for runtime in plan.runtimes:
            try:
                store.remove_unneeded(runtime)
                removed.append(runtime)
            except (InUseError, NotFoundError):  # somebody began to use it, or removed it, meanwhile
                continue
        for name in plan.incomplete:
            try:
                store.remove_unneeded_incomplete(name)
                incomplete.append(name)
            except (InUseError, NotFoundError):
                continue
        for log in plan.logs:
            transaction.discard(log)
    swept = plugin_generations.sweep(store)
    return replace(plan, runtimes=tuple(removed), incomplete=tuple(incomplete), leftovers=(*leftovers, *swept))


def _last_needed(store: Store, runtime: Runtime) -> datetime:
    used = store.last_used(runtime)
    if used is not None:
        return used
    try:
        return datetime.fromisoformat(store.manifest(runtime)["installed_at"]).astimezone(UTC)
    except (NotFoundError, StoreError, KeyError, TypeError, ValueError):
        return datetime.min.replace(tzinfo=UTC)


def _children(folder: Path) -> tuple[Path, ...]:
    try:
        return tuple(sorted(folder.iterdir()))
    except FileNotFoundError:
        return ()


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
