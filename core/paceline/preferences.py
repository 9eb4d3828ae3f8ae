"""What people may ask of the releases that are taken: channel, age, hashes, and wheels rather than builds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from paceline.errors import UsageError

if TYPE_CHECKING:
    from paceline.types import Release

CHANNELS = ("stable", "beta", "nightly")
"""What can be asked for. `nightly` is another word for `beta`."""

CHANNEL = "PACELINE_UPDATE_CHANNEL"
"""The environment variable that says which, where nobody says otherwise."""

MINIMUM_AGE = "PACELINE_MINIMUM_RELEASE_AGE"
"""The environment variable that says in days how old a release must be, where nobody says otherwise."""

WHEEL = "wheel"
"""What may be preferred."""
PREFER = "PACELINE_PREFER"
"""The environment variable that says what is, where nobody says otherwise."""


@dataclass(frozen=True)
class Policy:
    """Which releases may be taken, and which of them rather. Whatever installs, updates or bundles goes by one."""

    channel: str = "stable"
    """`beta`, or `nightly`, takes pre-releases too."""
    minimum_age: timedelta = timedelta(0)
    """What was published later than this is left out, as far as anybody says when it was."""
    prefer: str | None = None
    """`wheel`: rather what is prebuilt than what is compiled here."""
    allow_unpinned: bool = False
    """Also what has packages whose index publishes no hashes."""

    def published_until(self, now: datetime) -> datetime | None:
        """What was published later is too recent; None where every age will do."""
        return now - self.minimum_age if self.minimum_age else None


def preferred() -> str | None:
    """What the environment says is preferred: `wheel`, or None. Raises UsageError for something else."""
    said = os.environ.get(PREFER) or None
    if said not in (WHEEL, None):
        raise UsageError(f"{PREFER} is {said!r}", help=f"set it to `{WHEEL}`, or unset it")
    return said


def holds_all(channel: str) -> bool:
    """Whether a channel that is asked for holds pre-releases too."""
    return channel != "stable"


def is_of(channel: str, release: Release) -> bool:
    """Whether a release belongs to a channel that is asked for: every one to `beta`, stable ones alone to `stable`."""
    return holds_all(channel) or release.channel == "stable"
