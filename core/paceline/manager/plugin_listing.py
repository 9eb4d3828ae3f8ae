"""Plugins, and changes of those that were installed here, as JSON shows them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from paceline import plugin_folder
from paceline.errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path

    from paceline.manager.plugin_packages import Change
    from paceline.manager.plugin_trial import Trial
    from paceline.plugin_folder import State
    from paceline.plugins import Plugin, Plugins

NEXT_START = "what is running, such as `paceline serve`, sees it after its next start"
"""When a change takes effect."""


def state_of(home: Path) -> State:
    """What was installed here; nothing where that cannot be read, which is then among what `plugins.load` found."""
    try:
        return plugin_folder.read_state(home)
    except PluginError:
        return plugin_folder.State()


def describe_plugins(loaded: Plugins, state: State) -> list[dict[str, Any]]:
    """Every plugin that this process found, each with its source."""
    return [{**asdict(plugin), "source": source(plugin, state)} for plugin in loaded.plugins]


def source(plugin: Plugin, state: State) -> str | None:
    """`paceline` itself, this `environment`, the package `index`, a path of this machine, or what another needed."""
    if plugin.distribution is None:
        return None
    if not plugin.managed:
        return "paceline" if plugin.distribution == "paceline" else "environment"
    request = state.requests.get(str(canonicalize_name(plugin.distribution)))
    return (request.source or "index") if request is not None else "needed by another"


def describe_change(change: Change, trial: Trial | None = None) -> dict[str, Any]:
    """What comes and goes, what it claims, and, where it was loaded once, what it brought and how long that took.

    `change` is the digest of all the rest but the trial: who has looked at it can ask for exactly that.
    """
    told = {
        "added": [asdict(package) for package in change.added],
        "gone": [asdict(package) for package in change.gone],
        "requests": {name: asdict(request) for name, request in change.after.requests.items()},
    }
    return {
        "change": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(),
        **told,
        "engines": {name: list(engines) for name, engines in trial.engines.items()} if trial else None,
        "seconds": round(trial.seconds, 3) if trial else None,
    }
