"""Which release to take when a query leaves a choice. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.errors import IncompatibleError, NotFoundError, UnpinnedError
from paceline.types import Compatibility

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from paceline.types import Release, Verdict

_REASONS = 5
_OTHER_KIND = (Compatibility.INCOMPATIBLE_PLATFORM, Compatibility.INVALID_CPU_ARCHITECTURE)


@dataclass(frozen=True)
class Choice:
    """The release to install, and what should be said about how it was chosen."""

    release: Release
    verdict: Verdict
    remarks: tuple[str, ...] = ()


def choose(
    ranked: Sequence[tuple[Release, Verdict]],
    *,
    allow_incompatible: bool = False,
    allow_unpinned: bool = False,
    held: Collection[str] = (),
) -> Choice:
    """The best of `ranked` (see `verdict.rank`) that may be installed.

    What this machine cannot run is taken only with `allow_incompatible`, what has packages without hashes only with
    `allow_unpinned`, what is `held` (release ids) never. Raises NotFoundError for an empty list and when all are held,
    IncompatibleError when nothing runs here, UnpinnedError when only unpinned releases do.
    """
    if not ranked:
        raise NotFoundError("no release matches", help="`paceline runtime get --list` shows every release")
    passed = [release.id for release, _ in ranked if release.id in held]
    ranked = [(release, verdict) for release, verdict in ranked if release.id not in held]
    if not ranked:
        raise NotFoundError(
            f"every release that matches is held: {', '.join(passed)}",
            help="name one version exactly to install it all the same, or end the hold: `paceline runtime unhold`",
        )
    compatible = [(release, verdict) for release, verdict in ranked if verdict.ok]
    usable = compatible or (list(ranked) if allow_incompatible else [])
    if not usable:
        raise _none_runs_here(ranked)
    pinned = [(release, verdict) for release, verdict in usable if allow_unpinned or not release.recipe.unpinned]
    if not pinned:
        raise _none_is_pinned(usable[0][0], ranked)
    release, verdict = pinned[0]
    remarks = [f"{name} is held and was passed over" for name in passed]
    if len(ranked) > 1:
        remarks.append(f"{release.id} is the best of {len(ranked)} matching releases for this machine")
    if not verdict.ok:
        remarks.append(f"installed although {verdict.message}")
    passed_over = usable[0][0]
    if passed_over is not release:
        remarks.append(f"{passed_over.id} would rank higher, but its packages have no published hashes")
    return Choice(release, verdict, tuple(remarks))


def _none_runs_here(ranked: Sequence[tuple[Release, Verdict]]) -> IncompatibleError:
    near = _near_misses(ranked) or list(ranked)
    if len(near) == 1:
        verdict = near[0][1]
        return IncompatibleError(verdict.message, help=verdict.help)
    told = near[:_REASONS]
    reasons = "".join(f"\n  {verdict.message}" for _, verdict in told)
    more = f"\n  and {len(ranked) - len(told)} more" if len(ranked) > len(told) else ""
    return IncompatibleError(
        f"none of {len(ranked)} matching releases runs on this machine{reasons}{more}",
        help=near[0][1].help,
    )


def _none_is_pinned(release: Release, ranked: Sequence[tuple[Release, Verdict]]) -> UnpinnedError:
    unpinned = ", ".join(f"{p.name} {p.version}" for p in release.recipe.unpinned)
    message = f"{release.id} would run here, but no hashes are published for {unpinned}, so it cannot be checked"
    better = [verdict for r, verdict in _near_misses(ranked) if r.engine == release.engine and not r.recipe.unpinned]
    if not better:
        return UnpinnedError(message, help="accept that with --allow-unpinned")
    return UnpinnedError(
        f"{message}; {better[0].message}", help=f"{better[0].help}; or accept the other with --allow-unpinned"
    )


def _near_misses(ranked: Sequence[tuple[Release, Verdict]]) -> list[tuple[Release, Verdict]]:
    """What is made for machines of this kind and yet does not run: the reasons worth telling."""
    return [(r, v) for r, v in ranked if not v.ok and v.status not in _OTHER_KIND]
