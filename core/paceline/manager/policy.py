"""Which release to take when a query leaves a choice. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from paceline.errors import IncompatibleError, NotFoundError, UnpinnedError
from paceline.preferences import WHEEL, is_of
from paceline.types import Compatibility

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from paceline.types import Release, Verdict

    Ranked = Sequence[tuple[Release, Verdict]]

_REASONS = 5
_OTHER_KIND = (Compatibility.INCOMPATIBLE_PLATFORM, Compatibility.INVALID_CPU_ARCHITECTURE)


@dataclass(frozen=True)
class Choice:
    """The release to install, and what should be said about how it was chosen."""

    release: Release
    verdict: Verdict
    remarks: tuple[str, ...] = ()


def choose(
    ranked: Ranked,
    *,
    allow_incompatible: bool = False,
    allow_unpinned: bool = False,
    held: Collection[str] = (),
    channel: str = "stable",
    published_until: datetime | None = None,
    prefer: str | None = None,
) -> Choice:
    """The best of `ranked` (see `verdict.rank`) that may be installed.

    What this machine cannot run is taken only with `allow_incompatible`, what has packages without hashes only with
    `allow_unpinned`, what is `held` (release ids) or was published after `published_until` never, what is not of
    `channel` only where nothing else matches. `prefer`: with `wheel`, of the releases of the best one's engine the best
    that is not compiled here goes first. Raises NotFoundError for an empty list and when all are held or too recent,
    IncompatibleError when nothing runs here, UnpinnedError when only unpinned releases do.
    """
    if not ranked:
        raise NotFoundError("no release matches", help="`paceline runtime get --list` shows every release")
    remarks = [f"{release.id} is held and was passed over" for release, _ in ranked if release.id in held]
    ranked = _without_held(ranked, held)
    if published_until is not None:
        young = [release for release, _ in ranked if is_too_recent(release, published_until)]
        remarks += [f"{release.id} {too_recent(release)}, and was passed over" for release in young]
        ranked = _old_enough(ranked, published_until)
    compatible = [(release, verdict) for release, verdict in ranked if verdict.ok]
    usable = compatible or (list(ranked) if allow_incompatible else [])
    if not usable:
        raise _none_runs_here(ranked)
    usable = [(release, verdict) for release, verdict in usable if is_of(channel, release)] or usable
    pinned = [(release, verdict) for release, verdict in usable if allow_unpinned or not release.recipe.unpinned]
    if not pinned:
        raise _none_is_pinned(usable[0][0], ranked)
    release, verdict = pinned[0]
    if prefer == WHEEL and _is_built(release):
        prebuilt = [(r, v) for r, v in pinned if r.engine == release.engine and not _is_built(r)]
        if prebuilt:
            remarks.append(f"{release.id} would rank higher, but is built from source, and a wheel is preferred")
            release, verdict = prebuilt[0]
        else:
            remarks.append(_why_no_wheel(release, usable))
    if len(ranked) > 1:
        remarks.append(f"{release.id} is the best of {len(ranked)} matching releases")
    if not verdict.ok:
        remarks.append(f"installed although {verdict.message}")
    passed_over = usable[0][0]
    if passed_over is not release and passed_over.recipe.unpinned and not allow_unpinned:
        remarks.append(f"{passed_over.id} would rank higher, but its packages have no published hashes")
    return Choice(release, verdict, tuple(remarks))


def is_too_recent(release: Release, published_until: datetime) -> bool:
    """Whether a release appeared after a moment; one of which nobody says when came with Paceline or a plugin."""
    return release.published is not None and datetime.fromisoformat(release.published) > published_until


def too_recent(release: Release) -> str:
    """Of one that is, since when it has been there: the sentence without its subject."""
    assert release.published is not None
    return f"was published, or first seen here, on {release.published[:10]}, which is too recent for the minimum age"


def _without_held(ranked: Ranked, held: Collection[str]) -> Ranked:
    """Raises NotFoundError when nothing is left."""
    left = [(release, verdict) for release, verdict in ranked if release.id not in held]
    if not left:
        raise NotFoundError(
            f"every release that matches is held: {', '.join(release.id for release, _ in ranked)}",
            help="name one version exactly to install it all the same, or end the hold: `paceline runtime unhold`",
        )
    return left


def _old_enough(ranked: Ranked, published_until: datetime) -> Ranked:
    """Raises NotFoundError when nothing is left."""
    left = [(release, verdict) for release, verdict in ranked if not is_too_recent(release, published_until)]
    if not left:
        youngest = ranked[0][0]
        raise NotFoundError(
            f"every release that matches is too recent: {youngest.id} {too_recent(youngest)}",
            help="name one version exactly to install it all the same, or give a lower --minimum-age",
        )
    return left


def _is_built(release: Release) -> bool:
    return any(package.source for package in release.recipe.packages)


def _why_no_wheel(release: Release, usable: Ranked) -> str:
    unpinned = [r.id for r, _ in usable if r.engine == release.engine and not _is_built(r)]
    reason = f"{unpinned[0]} needs --allow-unpinned" if unpinned else f"{release.engine} has none that can be taken"
    return f"a wheel is preferred, but {reason}, so {release.id} is built from source"


def _none_runs_here(ranked: Ranked) -> IncompatibleError:
    near = _near_misses(ranked) or list(ranked)
    messages = list(dict.fromkeys(verdict.message for _, verdict in near))
    if len(messages) == 1:
        return IncompatibleError(messages[0], help=near[0][1].help)
    told = messages[:_REASONS]
    reasons = "".join(f"\n  {message}" for message in told)
    others = len({verdict.message for _, verdict in ranked} - set(told))
    more = f"\n  and {others} more" if others else ""
    return IncompatibleError(
        f"none of {len(ranked)} matching releases runs on this machine{reasons}{more}",
        help=near[0][1].help,
    )


def _none_is_pinned(release: Release, ranked: Ranked) -> UnpinnedError:
    unpinned = ", ".join(f"{p.name} {p.version}" for p in release.recipe.unpinned)
    message = f"{release.id} could be taken, but no hashes are published for {unpinned}, so it cannot be checked"
    better = [verdict for r, verdict in _near_misses(ranked) if r.engine == release.engine and not r.recipe.unpinned]
    if not better:
        return UnpinnedError(message, help="accept that with --allow-unpinned")
    help = better[0].help or ""
    if release.id not in help:
        help += f"; or accept {release.id} with --allow-unpinned"
    return UnpinnedError(f"{message}; {better[0].message}", help=help)


def _near_misses(ranked: Ranked) -> Ranked:
    """What is made for machines of this kind and yet does not run: the reasons worth telling."""
    return [(r, v) for r, v in ranked if not v.ok and v.status not in _OTHER_KIND]
