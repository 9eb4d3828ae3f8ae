"""What commands that take a QUERY share: exit code 3 for what matches nothing, and for what does not run here."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from paceline.errors import IncompatibleError, NotFoundError, PacelineError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def nothing_fits_is_3() -> Iterator[None]:
    """Let NotFoundError and IncompatibleError end the command with exit code 3."""
    try:
        yield
    except (NotFoundError, IncompatibleError) as error:
        raise _NothingFits(error.message, help=error.help) from error


class _NothingFits(PacelineError):
    exit_status = 3
