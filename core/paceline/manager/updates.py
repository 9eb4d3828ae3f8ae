"""Which selected runtimes should be replaced, and by which releases. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.manager.policy import is_too_recent, too_recent
from paceline.preferences import is_of
from paceline.versions import is_local, order

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from paceline.types import Release, Runtime, Verdict


@dataclass(frozen=True)
class Update:
    """A selected runtime and the release that should serve its formats instead."""

    runtime: Runtime
    formats: tuple[str, ...]
    release: Release


@dataclass(frozen=True)
class Kept:
    """A selected runtime that stays, and why."""

    runtime: Runtime
    reason: str
    newer: Release | None = None
    """What would have replaced it."""
    pinned: bool = False
    """Whether it stays for no other reason than that it is pinned."""


def plan_updates(
    selected: Mapping[str, Runtime],
    ranked: Sequence[tuple[Release, Verdict]],
    *,
    channel: str = "stable",
    pinned: Collection[str] = (),
    held: Collection[str] = (),
    allow_unpinned: bool = False,
    published_until: datetime | None = None,
) -> tuple[tuple[Update, ...], tuple[Kept, ...]]:
    """The updates to make, and the runtimes that stay.

    `selected`: by model format. `ranked`: releases with their verdicts on this machine, in any order. A runtime is
    replaced by the newest release of its own name and of `channel` that runs here, is not `held` (ids) and whose
    packages all have hashes; never when it is `pinned` (ids). `published_until`: what was published later has to wait.
    """
    updates: list[Update] = []
    kept: list[Kept] = []
    formats: dict[str, list[str]] = {}
    for name, runtime in selected.items():
        formats.setdefault(runtime.id, []).append(name)
    for runtime in {r.id: r for r in selected.values()}.values():
        if runtime.linked is not None:
            kept.append(Kept(runtime, f"it is linked to {runtime.linked}, which is its owner's to update"))
            continue
        if is_local(runtime.version):
            kept.append(Kept(runtime, "it holds a package of this machine, which only `runtime get PATH` renews"))
            continue
        newer = [(r, v) for r, v in ranked if r.name == runtime.name and order(r.version) > order(runtime.version)]
        newer.sort(key=lambda pair: order(pair[0].version), reverse=True)
        refused: list[tuple[Release, str]] = []
        chosen = None
        for release, verdict in newer:
            reason = _reason_against(release, verdict, channel, held, allow_unpinned, published_until)
            if reason is None:
                chosen = release
                break
            refused.append((release, reason))
        if chosen is None:
            reason = f"{refused[0][0].version} is newer, but {refused[0][1]}" if refused else "it is the newest"
            kept.append(Kept(runtime, reason, refused[0][0] if refused else None))
        elif runtime.id in pinned:
            kept.append(Kept(runtime, f"{chosen.version} is newer, but this one is pinned", chosen, pinned=True))
        else:
            updates.append(Update(runtime, tuple(sorted(formats[runtime.id])), chosen))
    return tuple(updates), tuple(kept)


def _reason_against(
    release: Release,
    verdict: Verdict,
    channel: str,
    held: Collection[str],
    allow_unpinned: bool,
    published_until: datetime | None,
) -> str | None:
    if not is_of(channel, release):
        return f"it is of the {release.channel} channel"
    if release.id in held:
        return "it is held back"
    if published_until is not None and is_too_recent(release, published_until):
        return f"it {too_recent(release)}"
    if not verdict.ok:
        return verdict.message
    if release.recipe.unpinned and not allow_unpinned:
        return "no hashes are published for its packages"
    return None
