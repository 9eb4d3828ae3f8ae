"""The options that say which releases may be taken, alike in every command that takes some."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from paceline.cli.numbers import Finite
from paceline.preferences import CHANNEL, CHANNELS, MINIMUM_AGE, PREFER, WHEEL, Policy

if TYPE_CHECKING:
    from paceline.errors import UnpinnedError


def policy_options(*, without: Collection[str] = (), prefix: str = "") -> Callable[[Any], Any]:
    """`--channel`, `--minimum-age`, `--prefer` and `--allow-unpinned`; the command gets them together, as `policy`.

    `without`: fields of the policy that mean nothing for the command. `prefix`: what comes before each name, `update-`.
    """
    names = [name for name in _OPTIONS if name not in without]

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def with_policy(**given: Any) -> Any:
            wishes = {name: given.pop(name) for name in names}
            if "minimum_age" in wishes:
                wishes["minimum_age"] = timedelta(days=wishes["minimum_age"])
            return command(policy=Policy(**wishes), **given)

        for name in reversed(names):
            flag = f"--{prefix}{name.replace('_', '-')}"
            with_policy = click.option(flag, name, **_OPTIONS[name])(with_policy)
        return with_policy

    return decorate


def accepts(error: UnpinnedError, question: str = "Install it, and require the same files from then on?") -> bool:
    """Whether a person at the terminal takes what cannot be checked; False where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    click.echo(error.message, err=True)
    return click.confirm(question, err=True)


_OPTIONS: dict[str, dict[str, Any]] = {
    "channel": {
        "type": click.Choice(CHANNELS),
        "default": "stable",
        "envvar": CHANNEL,
        "help": "beta, or nightly, takes pre-releases too.",
    },
    "minimum_age": {
        "type": Finite(0, 100_000),
        "default": 0.0,
        "envvar": MINIMUM_AGE,
        "metavar": "DAYS",
        "help": "Leave out what was published later than this.",
    },
    "prefer": {
        "type": click.Choice([WHEEL]),
        "envvar": PREFER,
        "help": "wheel: rather take what is prebuilt than what is compiled here.",
    },
    "allow_unpinned": {"is_flag": True, "help": "Take packages whose index publishes no hashes, too."},
}
"""The flag of each field of a policy."""
