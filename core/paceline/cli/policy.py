"""The options that say which releases may be taken, alike in every command that takes some."""

from __future__ import annotations

from typing import Any

import click

from paceline.preferences import CHANNELS


def channel_option(command: Any) -> Any:
    """`--channel`; the command receives it as `channel`."""
    return click.option(
        "--channel",
        type=click.Choice(CHANNELS),
        default="stable",
        envvar="PACELINE_UPDATE_CHANNEL",
        help="beta, or nightly, takes pre-releases too.",
    )(command)


def minimum_age_option(command: Any) -> Any:
    """`--minimum-age`; the command receives it as `minimum_age`, in days."""
    return click.option(
        "--minimum-age",
        type=click.FloatRange(0, 100_000),
        default=0.0,
        envvar="PACELINE_MINIMUM_RELEASE_AGE",
        metavar="DAYS",
        help="Leave out what was published later than this.",
    )(command)
