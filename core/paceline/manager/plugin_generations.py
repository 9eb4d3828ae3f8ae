"""Which generations of plugins are kept (see `plugin_folder`): what is in force, the one before, and those in use.

A process that has plugins of the home loaded holds their generation as it would a runtime, because they may import more
later. It does so once they are loaded; the one before what is in force stays anyhow, so that no change is so quick.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from paceline import paths, plugins
from paceline.errors import PacelineError
from paceline.plugin_folder import generation, read_state
from paceline.store import Store

if TYPE_CHECKING:
    from paceline.plugins import Plugins
    from paceline.store.uses import Use


def loaded() -> Plugins:
    """Every plugin, as `plugins.load` has it; those of the home are kept for as long as this process runs."""
    found = plugins.load()
    if any(plugin.managed for plugin in found.plugins):
        _held(paths.home(), found.generation)
    return found


def unneeded(store: Store) -> tuple[Path, ...]:
    """The generations that no process can need any more. None where it cannot be read which one is in force."""
    try:
        before = read_state(store.home).generation - 1
    except PacelineError:
        return ()
    numbers = sorted(int(f.name) for f in generation(store.home, 0).parent.glob("*") if f.name.isdecimal())
    return tuple(generation(store.home, n) for n in numbers if n < before and not store.plugins_in_use_by(n))


def sweep(store: Store) -> tuple[Path, ...]:
    """Delete what is `unneeded`; returns what went."""
    return tuple(folder for folder in unneeded(store) if store.remove_plugins(int(folder.name)))


@cache
def _held(home: Path, number: int) -> Use:
    return Store(home).use_plugins(number)
