"""Which release has what a runtime lacks, for the sentence "install that one"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.versions import order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.plugins import Plugins
    from paceline.store import Store
    from paceline.types import Release, Runtime, Verdict


def way_to(feature: str, runtime: Runtime, store: Store, plugins: Plugins) -> str | None:
    """The command that brings `feature` to what `runtime` serves here; None when no known release has it."""
    from paceline.registry import load_registry
    from paceline.survey import known_survey
    from paceline.verdict import rank

    holds = store.selection().holds
    releases = [r for r in load_registry(plugins, home=store.home).releases if r.id not in holds]
    release = release_with(feature, runtime, rank(releases, known_survey()))
    if release is None:
        return None
    if store.find(release.id) is not None:
        return f"{release.id} can: `paceline runtime select {release.id}`"
    return f"{release.id} can: `paceline runtime get {release.id}`, then `paceline runtime select {release.id}`"


def release_with(feature: str, runtime: Runtime, ranked: Sequence[tuple[Release, Verdict]]) -> Release | None:
    """The best of `ranked` that runs here, serves a format of `runtime` and has `feature`.

    A newer version of the runtime itself goes before another engine.
    """
    fitting = [
        release
        for release, verdict in ranked
        if verdict.ok
        and feature in release.features
        and set(release.formats) & set(runtime.formats)
        and (release.name != runtime.name or order(release.version) > order(runtime.version))
    ]
    return next((r for r in fitting if r.name == runtime.name), fitting[0] if fitting else None)
