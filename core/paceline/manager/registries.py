"""The signed registries that are trusted here: one is trusted, all are asked for news, lists show them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from paceline.errors import RegistryError
from paceline.progress import Phase, silent
from paceline.registry import trust as trusting
from paceline.store import transaction

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from paceline.progress import Progress
    from paceline.registry.signed import Outcome
    from paceline.registry.trust import TrustedRegistry


def trust(
    home: Path, url: str, root: bytes, name: str | None = None, progress: Progress = silent
) -> tuple[TrustedRegistry, Outcome]:
    """Trust the registry at `url` from now on, starting from its TUF metadata `root`; what asking it came to.

    One that does not answer is trusted. Raises RegistryError for what is no root and for an answer that does not follow
    from it, UsageError for what is no address or no name; then nothing is trusted that was not before.
    """
    from paceline.registry import signed

    registry = trusting.make_trusted(home, url, signed.check_root(root), name)
    progress(Phase.SEARCH, message=f"asking {registry.url}")
    outcome = signed.refresh(registry)
    if outcome.state is signed.State.REFUSED:
        if not registry.file.exists():
            transaction.discard(registry.folder)
        raise RegistryError(f"{url} is not trusted: {outcome.message}", help=outcome.help)
    trusting.remember_trust(registry)
    return registry, outcome


def refresh(home: Path, names: Sequence[str] = (), progress: Progress = silent) -> list[Outcome]:
    """Ask the registries called `names`, or all, for news, and verify them. Raises NotFoundError, and StoreError."""
    from paceline.registry import signed

    outcomes = []
    for registry in [trusting.get_trusted(home, name) for name in names] or trusting.trusted(home):
        progress(Phase.SEARCH, message=f"asking the registry {registry.name}")
        outcomes.append(signed.refresh(registry))
    return outcomes


def describe(registry: TrustedRegistry) -> dict[str, Any]:
    """A trusted registry, and what was last verified of it, as JSON shows it."""
    told: dict[str, Any] = {"name": registry.name, "url": registry.url, "file": str(registry.file)}
    known, problem = None, None
    try:
        known = trusting.verified(registry)
    except RegistryError as error:
        problem = error.message
    return told | {
        "releases": len(known.releases) if known else None,
        "verified_at": known.verified_at.isoformat() if known else None,
        "expires_at": known.expires_at.isoformat() if known else None,
        "expired": known.expired(datetime.now(UTC)) if known else None,
        "problem": problem,
    }


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """How a refresh ended, as JSON shows it."""
    return {
        "name": outcome.name,
        "state": outcome.state,
        "message": outcome.message,
        "reason": outcome.reason,
        "help": outcome.help,
    }
