"""The plugins that `paceline plugins install` keeps under the home, beside the host's own environment:

    plugins.json          which generation is in force, what was asked for, what it holds (see State)
    plugins/<number>/     a generation, never changed: packages/ (on the end of sys.path), wheels/ that came from this
                          machine, pylock.toml

One rename of plugins.json switches from one generation to the next. The newest before it stays, and so do those that a
process uses (see `manager.plugin_generations`).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paceline import refusals
from paceline.errors import PluginError
from paceline.untrusted_json import read_object

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Request:
    """A distribution that somebody asked for."""

    requirement: str
    """As PEP 508 writes it: `paceline-echo>=1`; of a wheel, its name alone."""
    wheel: str | None = None
    """Its file below the generation's `wheels`, where it came from this machine."""
    source: str | None = None
    """The path that was given; None: the package index."""


@dataclass(frozen=True)
class Held:
    """A distribution of a generation, as its metadata has it."""

    name: str
    version: str
    sha256: tuple[str, ...]
    size_bytes: int
    entry_points: Mapping[str, str] = field(default_factory=dict)
    """Of the group `paceline`: the plugins it brings."""
    engines: tuple[str, ...] | None = None
    """The names in its group `paceline.engines`: the engines it claims; None when it has no such group."""


@dataclass(frozen=True)
class State:
    """What is in force."""

    generation: int = 0
    """0: nothing was ever installed."""
    python: str = ""
    """The Python that its packages are for, `3.12`."""
    requests: Mapping[str, Request] = field(default_factory=dict)
    """By normalized name."""
    packages: tuple[Held, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether its packages are for the Python that runs this."""
        return self.python == python_version()


def python_version() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def state_file(home: Path) -> Path:
    return home / "plugins.json"


def generation(home: Path, number: int) -> Path:
    return home / "plugins" / str(number)


def packages(folder: Path) -> Path:
    """The packages of a generation's folder."""
    return folder / "packages"


def read_state(home: Path) -> State:
    """What plugins.json says. Raises PluginError when it cannot be read."""
    file = state_file(home)
    try:
        data = read_object(file)
    except FileNotFoundError:
        return State()
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from None
    try:
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {data['schema_version']!r} is not {SCHEMA_VERSION}")
        return State(
            int(data["generation"]),
            str(data["python"]),
            {name: Request(**request) for name, request in data["requests"].items()},
            tuple(_held(each) for each in data["packages"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(file, ValueError(f"{type(error).__name__}: {error}")) from None


def to_json(state: State) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION, **asdict(state)}


def _held(data: dict[str, Any]) -> Held:
    engines = data["engines"]
    return Held(**{**data, "sha256": tuple(data["sha256"]), "engines": tuple(engines) if engines is not None else None})


def _unreadable(file: Path, error: Exception) -> PluginError:
    return PluginError(
        f"{file} cannot be read, so that the plugins it lists are left out: {refusals.words(error)}",
        help=refusals.way_out(error, file) or "delete it and install the plugins again with `paceline plugins install`",
    )
