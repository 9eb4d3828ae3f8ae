"""How an installation tells where it is. The command line draws it, the API will stream it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol, TypeAlias


class Phase(StrEnum):
    """The phases of an update or an installation, in order, of those it needs; a build is among the packages."""

    SEARCH = "search"
    """New releases are looked for, where the message says."""
    WAIT = "wait"
    """Another process installs into the same home."""
    ENVIRONMENT = "environment"
    DOWNLOAD = "download"
    """`done` of `total` bytes of packages are here; with a message, nothing comes for the reason it gives."""
    PACKAGES = "packages"
    """`done` of `total` packages are in the environment."""
    BUILD = "build"
    """`done` of `total` compiler steps, of the package named in the message."""
    CHECK = "check"
    """The files are compared with what their packages record, the engine is started once, every file is hashed."""
    PUBLISH = "publish"
    """Everything is ready; the next step is the one rename that makes it count."""
    DONE = "done"


class Progress(Protocol):
    """Called often, from the installing thread. What it raises cancels the installation."""

    def __call__(self, phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None: ...


Teller: TypeAlias = Callable[[str | None], Progress]
"""Makes the progress of a subject, such as a release, among several."""


def silent(phase: Phase, done: int = 0, total: int | None = None, message: str = "") -> None:
    """A Progress that shows nothing."""
