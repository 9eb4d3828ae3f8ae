"""Repairing an installed runtime by its name: which engine it is of, and what it was made of, is looked up."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from paceline import refusals
from paceline.errors import InstallError, PacelineError, StoreError
from paceline.manager import inventory
from paceline.manager.installation import repair
from paceline.progress import silent

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from paceline.plugins import Plugins
    from paceline.progress import Progress
    from paceline.store import Store
    from paceline.types import Runtime


def to_mend(store: Store, query: str | None) -> list[str]:
    """The names of the runtimes to look at, those that are selected first.

    They are those that a query means; without one all but links, which are their owners' to mend.
    """
    names = inventory.installed_names(store, query)
    selected: Collection[str] = ()
    with suppress(StoreError):  # a selection that cannot be read keeps nothing from being mended
        selected = store.selection().ids()
    found = names if query is not None else [name for name in names if not is_linked(store, name)]
    return sorted(found, key=lambda name: name not in selected)


def is_linked(store: Store, name: str) -> bool:
    runtime = store.find(name)
    return runtime is not None and runtime.linked is not None


def attempt(name: str, store: Store, plugins: Plugins, progress: Progress = silent) -> PacelineError | None:
    """As `mend`, for one of several: what goes wrong is returned, also what the system refuses."""
    try:
        mend(name, store, plugins, progress)
    except PacelineError as error:
        return error
    except OSError as error:
        return refusals.refusal(error) or StoreError(f"{name} was not repaired: {error}")
    return None


def describe(names: Sequence[str], damaged: Collection[str], failed: Mapping[str, PacelineError]) -> dict[str, Any]:
    """What came of a repair of `names`, as JSON shows it; `failed`: those of the `damaged` that were not mended."""
    return {
        "whole": [name for name in names if name not in damaged],
        "repaired": [name for name in damaged if name not in failed],
        "failed": [{"id": name, **error.describe()} for name, error in failed.items()],
    }


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
