"""What people may ask of the releases that are taken: a channel, and wheels rather than what is compiled here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from paceline.errors import UsageError

if TYPE_CHECKING:
    from paceline.types import Release

CHANNELS = ("stable", "beta", "nightly")
"""What can be asked for. `nightly` is another word for `beta`."""

WHEEL = "wheel"
"""What may be preferred."""
PREFER = "PACELINE_PREFER"
"""The environment variable that says what is, where nobody says otherwise."""


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
