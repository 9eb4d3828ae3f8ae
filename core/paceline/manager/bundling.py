"""Which releases go into a bundle, and what becomes of one on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from paceline.errors import AmbiguousError, IncompatibleError, NotFoundError, UnpinnedError, UsageError
from paceline.manager import inventory
from paceline.manager.exact import covering, find, found_for
from paceline.manager.installation import check_pinned
from paceline.manager.local_packages import carried
from paceline.packages import first_use, python_versions
from paceline.registry import FOUND
from paceline.types import Compatibility, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from paceline.manager.bundles import Bundle
    from paceline.plugins import Plugins
    from paceline.preferences import Policy
    from paceline.store import Store
    from paceline.types import Release, Runtime

_NOT_ASKED = Verdict(Compatibility.COMPATIBLE, "it is for another machine, which cannot be asked")


def check_pythons(pythons: Sequence[str]) -> None:
    """Raise UsageError for what is no version such as `3.12`."""
    for python in pythons:
        if not re.fullmatch(r"3\.[0-9]{1,3}", python):
            raise UsageError(f"{python!r} is no version of Python", help="give it as `3.12`", param="pythons")


@dataclass(frozen=True)
class Content:
    """What a bundle is to hold."""

    releases: list[Release]
    wheels: dict[str, Path]
    """By sha256, those that no index has."""
    remarks: list[str]
    """What whoever asked should be told."""
    accepted: list[str]
    """The ids of releases whose packages without published hashes may be fetched."""


def chosen(
    queries: Sequence[str],
    store: Store,
    plugins: Plugins,
    policy: Policy,
    *,
    pythons: Sequence[str],
    platform: str | None = None,
    accept: Callable[[UnpinnedError], bool] = lambda error: False,
    asking: Callable[[str], None] = lambda sentence: None,
) -> Content:
    """The releases that `queries` mean, as they were published, each the best of `platform` or for this machine.

    A query that only an installed runtime has the name of means that runtime as it was installed; a version that
    nothing lists is asked of the package index, which `asking` is told of, and one that was found there is locked for
    those of `pythons` that it is not locked for yet. Packages without published hashes are taken
    where they were before for all `pythons`, where the policy allows them, or where `accept` does. Raises
    NotFoundError, AmbiguousError, UnpinnedError, IncompatibleError for Pythons that a release is not made for, and
    InstallError when the index cannot be asked.
    """
    choosing = _Choosing(store, plugins, policy, pythons, platform, accept, asking)
    releases: dict[str, Release] = {}
    for query in queries:
        release = choosing.release(query)
        releases[release.id] = release
    return Content(list(releases.values()), choosing.wheels, choosing.remarks, choosing.accepted)


def judged(bundle: Bundle) -> dict[str, Verdict]:
    """By release, whether this machine can run it, best first."""
    from paceline.survey import known_survey
    from paceline.verdict import rank

    return {release.id: verdict for release, verdict in rank(bundle.releases, known_survey())}


def that_run_here(bundle: Bundle, *, allow_incompatible: bool = False) -> list[Release]:
    """The releases of `bundle` that this machine can run. Raises IncompatibleError that says why there are none."""
    verdicts = judged(bundle)
    releases = [r for r in bundle.releases if allow_incompatible or verdicts[r.id].ok]
    if not releases:
        reasons = "; ".join(verdict.message for verdict in verdicts.values())
        help = next((verdict.help for verdict in verdicts.values()), None)
        raise IncompatibleError(f"{bundle.path} holds nothing that runs on this machine: {reasons}", help=help)
    if (here := python_versions.here()) not in bundle.pythons:
        raise IncompatibleError(
            f"{bundle.path} is for Python {', '.join(bundle.pythons)}; runtimes are built on Python {here} here",
            help=f"run Paceline with such a Python, or make the bundle with `--python {here}`",
        )
    return releases


def check_accepted(
    releases: Iterable[Release], store: Store, *, accept: Callable[[UnpinnedError], bool], pythons: Sequence[str] = ()
) -> None:
    """Raise UnpinnedError for one with packages whose hashes nobody published, if `accept` does not take it either.

    What was used before for all `pythons`, by default here, needs no acceptance.
    """
    for release in releases:
        try:
            check_pinned(_as_seen(release, store, pythons))
        except UnpinnedError as error:
            if not accept(error):
                raise


def describe(bundle: Bundle, verdicts: dict[str, Verdict] | None = None) -> dict[str, Any]:
    """What a bundle holds, as JSON shows it."""
    return {
        "pythons": list(bundle.pythons),
        "releases": [
            {
                "id": r.id,
                "platform": r.platform,
                "unpinned": [p.name for p in r.recipe.unpinned],
                **({"verdict": verdicts[r.id]} if verdicts else {}),
            }
            for r in bundle.releases
        ],
        "files": [{"name": f.name, "sha256": f.sha256, "size_bytes": f.size} for f in bundle.listed],
    }


class _Choosing:
    """Finds out what queries mean, and what goes with that."""

    def __init__(
        self,
        store: Store,
        plugins: Plugins,
        policy: Policy,
        pythons: Sequence[str],
        platform: str | None,
        accept: Callable[[UnpinnedError], bool],
        asking: Callable[[str], None],
    ) -> None:
        self._store, self._plugins, self._policy, self._pythons = store, plugins, policy, pythons
        self._platform, self._accept, self._asking = platform, accept, asking
        self._known = inventory.known(store, plugins, as_published=True)
        self.wheels: dict[str, Path] = {}
        self.remarks = [str(remark) for remark in self._known.remarks]
        self.accepted: list[str] = []

    def release(self, query: str) -> Release:
        matching = [r for r in self._known.match(query) if self._platform in (None, r.platform)]
        if not matching and (installed := _installed(query, self._store, self._platform)):
            release, wheels = carried(installed, self._known.releases)
            self.wheels |= wheels
            accept = (lambda _: True) if self._policy.allow_unpinned else self._accept
            check_accepted([release], self._store, accept=accept, pythons=self._pythons)
        else:
            release = self._best(self._completed(query, matching), query)
        if release.recipe.unpinned:
            self.accepted.append(release.id)
        return release

    def _completed(self, query: str, matching: Sequence[Release]) -> Sequence[Release]:
        """`matching`, or what the package index has of a version that is not listed, or not for this machine."""
        options: dict[str, Any] = {"wanted": self._pythons, "asking": self._asking}
        if not matching:
            missing = self._missing(query)
            return [find(self._store, self._plugins, query, missing, platform=self._platform, **options)]
        if self._platform is not None:
            return matching
        here = found_for(self._store, self._plugins, query, matching, **options)
        return matching if here is None or here in matching else [here]

    def _missing(self, query: str) -> NotFoundError:
        if self._platform is None:
            return NotFoundError(f"no release matches {query!r}", help="`paceline runtime get --list` shows them all")
        head = query.partition("@")[0]
        platforms = {release.platform for release in self._known.match(head)} if head.strip() else set()
        return NotFoundError(
            f"no release matches {query!r} for {self._platform}",
            help=f"it is there for {', '.join(sorted(platforms))}"
            if platforms
            else "`paceline runtime get --list` shows every release",
        )

    def _best(self, matching: Sequence[Release], query: str) -> Release:
        from paceline.survey import known_survey
        from paceline.verdict import rank

        names = sorted({r.name for r in matching})
        if self._platform is not None and len(names) > 1:
            raise AmbiguousError(
                f"{query!r} means several releases for {self._platform}: {', '.join(names)}", help="name one of them"
            )
        as_published = {r.id: r for r in self._made_for_them(matching)}
        # Not judged by the Python here, which is not what it is for.
        seen = [
            replace(_as_seen(r, self._store, self._pythons), requires=replace(r.requires, python=None))
            for r in as_published.values()
        ]
        ranked = rank(seen, known_survey(), channel=self._policy.channel)
        if self._platform is not None or (len(names) == 1 and not any(verdict.ok for _, verdict in ranked)):
            ranked = [(release, _NOT_ASKED) for release in seen]
        choose = partial(inventory.chosen, ranked, self._store, query)
        try:
            choice = choose(policy=self._policy)
        except UnpinnedError as error:
            if not self._accept(error):
                raise
            choice = choose(policy=replace(self._policy, allow_unpinned=True))
        self.remarks += choice.remarks
        release = as_published[choice.release.id]
        return covering(self._store, self._plugins, release, self._pythons, asking=self._asking)

    def _made_for_them(self, matching: Sequence[Release]) -> list[Release]:
        """Those of `matching` that the Pythons asked for may run. What the package index brought may be for any."""

        def unfit(release: Release) -> list[str]:
            admits = release.requires.python if release.source != FOUND else None
            return [python for python in self._pythons if not python_versions.is_admitted(python, admits)]

        fitting = [release for release in matching if not unfit(release)]
        if not fitting:
            first = matching[0]
            there = python_versions.admitted(first.requires.python)
            those = f"Python {python_versions.listed(there)} with --python" if there else "another release"
            raise IncompatibleError(
                f"{first.id} is made for Python {first.requires.python}, and "
                f"{python_versions.listed(unfit(first))} is not of these",
                help=f"choose {those}",
            )
        return fitting


def _as_seen(release: Release, store: Store, pythons: Sequence[str]) -> Release:
    """With the hashes of what was used before for all `pythons`, by default here."""
    places = [first_use.place(release.requires, python) for python in pythons]
    return replace(release, recipe=first_use.pinned(release.recipe, store.home, places))


def _installed(query: str, store: Store, platform: str | None) -> Runtime | None:
    """The one installed runtime that a query means; None when there is none."""
    try:
        found = [r for r in store.match(query) if platform in (None, r.platform)]
    except NotFoundError:
        return None
    if len(found) > 1:
        names = ", ".join(r.id for r in found)
        raise AmbiguousError(f"{query!r} means several installed runtimes: {names}", help="name one of them")
    return found[0] if found else None
