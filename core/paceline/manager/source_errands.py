"""Long work on where code comes from, as `manager.errand` does it: signed registries, bundles, plugins."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from paceline import network, paths
from paceline.errors import InstallError
from paceline.manager import bundle_shelf, bundles, bundling, inventory, plugin_generations, plugin_packages, registries
from paceline.manager.installation import install
from paceline.manager.plugin_listing import NEXT_START, describe_change
from paceline.packages import python_versions
from paceline.preferences import Policy
from paceline.progress import Phase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from paceline.manager.plugin_packages import Change
    from paceline.manager.plugin_trial import Trial
    from paceline.progress import Teller
    from paceline.store import Store


def _trust(store: Store, teller: Teller, *, url: str, root: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    registry, outcome = registries.trust(store.home, url, json.dumps(root).encode(), name, teller(name))
    return {"registry": registries.describe(registry), "refresh": registries.describe_outcome(outcome)}


def _refresh(store: Store, teller: Teller, *, names: Sequence[str]) -> dict[str, Any]:
    outcomes = registries.refresh(store.home, names, teller(None))
    return {"registries": [registries.describe_outcome(outcome) for outcome in outcomes]}


def _create_bundle(
    store: Store,
    teller: Teller,
    *,
    name: str,
    queries: Sequence[str],
    platform: str | None,
    pythons: Sequence[str],
    prefer: str | None,
    channel: str,
    minimum_age_days: float,
    allow_unpinned: bool,
) -> dict[str, Any]:
    file = bundle_shelf.place(store.home, name)
    bundling.check_pythons(pythons)
    policy = Policy(channel, timedelta(days=minimum_age_days), prefer, allow_unpinned)
    python, loaded = pythons or [python_versions.here()], plugin_generations.loaded()
    content = bundling.chosen(queries, store, loaded, policy, pythons=python, platform=platform)
    made = bundles.create(
        content.releases,
        file,
        python,
        paths.cache(),
        teller(name),
        store=store,
        wheels=content.wheels,
        accepted=content.accepted,
    )
    return {**bundle_shelf.describe(made), "remarks": content.remarks}


def _install_bundle(
    store: Store, teller: Teller, *, name: str, allow_incompatible: bool, allow_unpinned: bool, dry_run: bool
) -> dict[str, Any]:
    network.go_offline()
    found = bundles.read_bundle(bundle_shelf.find(store.home, name))
    teller(name)(Phase.CHECK, message="comparing its files with their hashes")
    found.check()
    releases, loaded = bundling.that_run_here(found, allow_incompatible=allow_incompatible), plugin_generations.loaded()
    bundling.check_accepted(releases, store, accept=lambda error: allow_unpinned)
    if dry_run:
        return {"would_install": [release.id for release in releases]}
    made = [
        install(r, store, loaded.engine(r.engine), teller(r.id), allow_unpinned=allow_unpinned, supply=found)
        for r in releases
    ]
    return {"runtimes": [inventory.describe_runtime(runtime, store, store.selection()) for runtime in made]}


def _install_plugins(store: Store, teller: Teller, *, names: Sequence[str], change: str | None) -> dict[str, Any]:
    begin = partial(plugin_packages.install, names, store, cache=paths.cache(), progress=teller(None))
    return _change_plugins(begin, change)


def _update_plugins(store: Store, teller: Teller, *, names: Sequence[str], change: str | None) -> dict[str, Any]:
    begin = partial(plugin_packages.update, names, store, cache=paths.cache(), progress=teller(None))
    return _change_plugins(begin, change)


def _remove_plugins(store: Store, teller: Teller, *, names: Sequence[str], change: str | None) -> dict[str, Any]:
    def begin(confirm: plugin_packages.Confirm) -> tuple[Change, Trial | None] | None:
        done = plugin_packages.remove(names, store, confirm=confirm, progress=teller(None))
        return (done, None) if done is not None else None

    return _change_plugins(begin, change)


def _change_plugins(begin: Callable[..., tuple[Change, Trial | None] | None], wanted: str | None) -> dict[str, Any]:
    """Make the change whose digest is `wanted`, or, without one, say what would change."""
    shown: dict[str, Any] = {}

    def confirm(found: Change) -> bool:
        shown.update(describe_change(found))
        if wanted is not None and shown["change"] != wanted:
            raise InstallError(
                "nothing was changed: what would change now is not what was looked at",
                help="ask again with `dry_run`, look at what it says, and give its `change`",
            )
        return wanted is not None

    done = begin(confirm=confirm)
    if done is None:
        return {**shown, "changed": False, "remarks": []}
    change, trial = done
    remarks = [NEXT_START]
    if trial is not None and trial.slow:
        remarks.append(f"loading them adds {trial.seconds:.1f} s to every start of Paceline")
    return {**describe_change(change, trial), "changed": True, "remarks": remarks}


ERRANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "trust_registry": _trust,
    "refresh_registries": _refresh,
    "create_bundle": _create_bundle,
    "install_bundle": _install_bundle,
    "install_plugins": _install_plugins,
    "update_plugins": _update_plugins,
    "remove_plugins": _remove_plugins,
}
