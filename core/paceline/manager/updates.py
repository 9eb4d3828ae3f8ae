"""Which selected runtimes should be replaced, and by which releases. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from paceline.manager.policy import is_too_recent, too_recent
from paceline.packages.python_versions import is_admitted
from paceline.preferences import is_of
from paceline.versions import is_local, order

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
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
    of_models: Mapping[str, Runtime] = MappingProxyType({}),
    channel: str = "stable",
    pinned: Collection[str] = (),
    held: Collection[str] = (),
    withdrawn: Collection[str] = (),
    allow_unpinned: bool = False,
    published_until: datetime | None = None,
) -> tuple[tuple[Update, ...], tuple[Kept, ...]]:
    """The updates to make, and the runtimes that stay.

    `selected`: by model format. `ranked`: releases with their verdicts on this machine, in any order. A runtime is
    replaced, for each format, by the newest release of its own name and of `channel` that serves the format, runs here,
    is neither `held` nor `withdrawn` (ids) and whose packages all have hashes; never when it is `pinned` (ids).
    `of_models`: what the user chose for single models, which stays. `published_until`: what was published later has to
    wait.
    """
    updates: list[Update] = []
    kept: list[Kept] = []
    formats: dict[str, list[str]] = {}
    for name, runtime in selected.items():
        formats.setdefault(runtime.id, []).append(name)
    models: dict[str, list[str]] = {}
    for model, runtime in of_models.items():
        if runtime.id not in formats:
            models.setdefault(runtime.id, []).append(model)
    for runtime in {r.id: r for r in (*selected.values(), *of_models.values())}.values():
        if runtime.linked is not None:
            kept.append(Kept(runtime, f"it is linked to {runtime.linked}, which is its owner's to update"))
            continue
        if is_local(runtime.version):
            kept.append(Kept(runtime, "it holds a package of this machine, which only `runtime get PATH` renews"))
            continue
        newer = [(r, v) for r, v in ranked if r.name == runtime.name and order(r.version) > order(runtime.version)]
        newer.sort(key=lambda pair: order(pair[0].version), reverse=True)
        reasons = {r.id: _reason_against(r, v, channel, held, allow_unpinned, published_until) for r, v in newer}
        reasons |= {r.id: "the package index no longer offers it" for r, _ in newer if r.id in withdrawn}
        if runtime.id in models:
            best = next((r for r, _ in newer if reasons[r.id] is None), None)
            kept.append(_chosen_for(models[runtime.id], runtime, best))
            continue
        found: dict[str, tuple[Release, list[str]]] = {}
        stays: dict[str, Kept] = {}
        for name in sorted(formats[runtime.id]):
            chosen = next((r for r, _ in newer if reasons[r.id] is None and name in r.formats), None)
            if chosen is None:
                kept_so = _kept(runtime, name, [(r, reasons[r.id]) for r, _ in newer])
                stays.setdefault(kept_so.reason, kept_so)
            elif runtime.id in pinned:
                reason = f"{chosen.version} is newer, but this one is pinned"
                stays.setdefault(reason, Kept(runtime, reason, chosen, pinned=True))
            else:
                found.setdefault(chosen.id, (chosen, []))[1].append(name)
        updates += [Update(runtime, tuple(names), release) for release, names in found.values()]
        kept += stays.values()
    return tuple(updates), tuple(kept)


def _chosen_for(models: Sequence[str], runtime: Runtime, newer: Release | None) -> Kept:
    """Why a runtime stays that serves no format, and what could be chosen instead."""
    chosen = f"this one was chosen for {', '.join(sorted(models))} alone"
    return Kept(runtime, f"{newer.version} is newer, but {chosen}" if newer else chosen, newer)


def _kept(runtime: Runtime, model_format: str, refused: Sequence[tuple[Release, str | None]]) -> Kept:
    """Why a runtime goes on serving a format, of newer releases that are refused for a reason, or lack the format."""
    if not refused:
        return Kept(runtime, "it is the newest")
    release, reason = refused[0]
    return Kept(
        runtime, f"{release.version} is newer, but {reason or f'does not serve {model_format.upper()}'}", release
    )


def withdrawn_since(
    found: Iterable[Release],
    answer: str,
    *,
    python: str,
    channel: str = "stable",
    held: Collection[str] = (),
    published_until: datetime | None = None,
) -> tuple[Release, ...]:
    """Of releases that the package index brought before, what it would have answered now if it still offered it.

    `found`: of one name. `answer`: the newest version that the index offers, as it was asked: for `python`, in
    `channel`, without the `held` (ids) and what was published after `published_until`. What was not asked for may well
    be there, and so may what is older than the answer.
    """
    return tuple(
        release
        for release in found
        if order(release.version) > order(answer)
        and is_of(channel, release)
        and release.id not in held
        and not (published_until is not None and is_too_recent(release, published_until))
        and is_admitted(python, release.requires.python)
    )


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
