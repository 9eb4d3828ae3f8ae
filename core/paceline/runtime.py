"""An installed runtime. One of `types`, apart from the others: to read the store is to need this one alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Runtime:
    """An installed release: immutable, in a directory of its own."""

    engine: str
    version: str
    platform: str
    formats: tuple[str, ...]
    features: tuple[str, ...]
    directory: Path
    python: Path
    """The interpreter of the runtime's environment."""
    linked: Path | None = None
    """The environment somewhere else that it is a link to, built by hand and never changed here; None: installed."""

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.platform}"

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"
