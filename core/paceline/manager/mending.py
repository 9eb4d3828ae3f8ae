"""Repairing an installed runtime by its name: which engine it is of, and what it was made of, is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.errors import InstallError
from paceline.manager import inventory
from paceline.manager.installation import repair
from paceline.progress import silent

if TYPE_CHECKING:
    from paceline.plugins import Plugins
    from paceline.progress import Progress
    from paceline.store import Store
    from paceline.types import Runtime


def to_mend(store: Store, query: str | None) -> list[str]:
    """The names of the runtimes to look at: those that a query means; without one all but links, which are their
    owners' to mend."""
    names = inventory.installed_names(store, query)
    return names if query is not None else [name for name in names if not is_linked(store, name)]


def is_linked(store: Store, name: str) -> bool:
    runtime = store.find(name)
    return runtime is not None and runtime.linked is not None


def mend(name: str, store: Store, plugins: Plugins, progress: Progress = silent) -> Runtime:
    """Repair the runtime `name`, one that counts as installed or not; see `installation.repair`."""
    release = next((r for r in inventory.known(store, plugins).releases if r.id == name), None)
    runtime = store.find(name)
    engine = runtime.engine if runtime is not None else release.engine if release is not None else None
    if engine is None:
        raise InstallError(
            f"{name} cannot be repaired: its manifest is unreadable and no release of that name is known",
            help=f"remove it with `paceline runtime remove {name}`",
        )
    return repair(name, store, plugins.engine(engine), progress, release=release)
