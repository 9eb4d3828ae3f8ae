"""Where Paceline keeps things. The environment decides first, then the platform's own folders.

PACELINE_HOME           runtimes, selection, models     (default: the user's data folder)
PACELINE_CACHE          downloads, built wheels, index  (default: the user's cache folder)
PACELINE_MODELS         the models folder               (default: <home>/models)
PACELINE_EXTRA_MODELS   more folders, separated like PATH
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder of everything that must be kept."""
    return _from_environment("PACELINE_HOME") or _platform("data")


def cache() -> Path:
    """The folder of what can be made or fetched again."""
    return _from_environment("PACELINE_CACHE") or _platform("cache")


def models() -> Path:
    return _from_environment("PACELINE_MODELS") or home() / "models"


def extra_models() -> tuple[Path, ...]:
    value = os.environ.get("PACELINE_EXTRA_MODELS", "")
    return tuple(given(p) for p in value.split(os.pathsep) if p)


def given(path: str | Path) -> Path:
    """A path as a person gives it, absolute; `~` is a home folder, unless there is no such user."""
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - Path's own raises RuntimeError then


def samples() -> Path:
    """The models that ship with the package."""
    return _package_path("samples")


def registry_file() -> Path:
    return _package_path("registry.json")


def worker_root() -> Path:
    """The folder that holds the first-party workers' packages, and nothing of the host."""
    return _package_path("_runtimes")


def _package_path(name: str) -> Path:
    return Path(__file__).with_name(name)


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return given(value) if value else None


def _platform(kind: str) -> Path:
    import platformdirs

    path = platformdirs.user_data_path if kind == "data" else platformdirs.user_cache_path
    return path("paceline", appauthor=False)
