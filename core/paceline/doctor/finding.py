"""What a check of the doctor says, and what it may look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paceline.plugins import Plugins
    from paceline.store import Store


class Status(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, but it explains what may surprise."""
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One sentence with the data, and the way out."""

    check: str
    status: Status
    message: str
    help: str | None = None


@dataclass(frozen=True)
class Patient:
    """What is looked at: one home and cache, the plugins and the environment of one process."""

    store: Store
    cache: Path
    models: tuple[Path, ...]
    """The models folder first, then the extra ones."""
    plugins: Plugins
    environ: Mapping[str, str]
    address: tuple[str, int] = ("127.0.0.1", 1234)
    """Where `paceline serve` listens."""
