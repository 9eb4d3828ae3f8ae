"""Which releases go into a bundle, and what becomes of one on this machine."""

from __future__ import annotations

import platform as machine
import re
from typing import TYPE_CHECKING, Any

from paceline.errors import AmbiguousError, IncompatibleError, NotFoundError, UsageError
from paceline.manager import inventory
from paceline.manager.local_packages import carried
from paceline.manager.policy import choose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from paceline.manager.bundles import Bundle
    from paceline.plugins import Plugins
    from paceline.store import Store
    from paceline.types import Release, Runtime, Verdict


def python_here() -> str:
    """The Python that runtimes are built on here, as bundles name it: `3.12`."""
    return ".".join(machine.python_version_tuple()[:2])


def check_pythons(pythons: Sequence[str]) -> None:
    """Raise UsageError for what is no version such as `3.12`."""
    for python in pythons:
        if not re.fullmatch(r"3\.[0-9]{1,3}", python):
            raise UsageError(f"{python!r} is no version of Python", help="give it as `3.12`", param="pythons")


def chosen(
    queries: Sequence[str], store: Store, plugins: Plugins, *, platform: str | None = None
) -> tuple[list[Release], dict[str, Path]]:
    """The releases that `queries` mean, each the best of `platform` or for this machine, and their wheels by sha256
    that no index has.

    A query that only an installed runtime has the name of means that runtime as it was installed. Raises NotFoundError
    and AmbiguousError.
    """
    releases: dict[str, Release] = {}
    wheels: dict[str, Path] = {}
    for query in queries:
        release, kept = _release(query, store, plugins, platform)
        releases[release.id], wheels = release, wheels | kept
    return list(releases.values()), wheels


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
    if python_here() not in bundle.pythons:
        raise IncompatibleError(
            f"{bundle.path} is for Python {', '.join(bundle.pythons)}; runtimes are built on Python {python_here()} "
            "here",
            help=f"run Paceline with such a Python, or make the bundle with `--python {python_here()}`",
        )
    return releases


def describe(bundle: Bundle, verdicts: dict[str, Verdict] | None = None) -> dict[str, Any]:
    """What a bundle holds, as JSON shows it."""
    return {
        "pythons": list(bundle.pythons),
        "releases": [
            {"id": r.id, "platform": r.platform, **({"verdict": verdicts[r.id]} if verdicts else {})}
            for r in bundle.releases
        ],
        "files": [{"name": f.name, "sha256": f.sha256, "size_bytes": f.size} for f in bundle.listed],
    }


def _release(query: str, store: Store, plugins: Plugins, platform: str | None) -> tuple[Release, dict[str, Path]]:
    from paceline.survey import known_survey
    from paceline.verdict import rank

    known = inventory.known(store, plugins)
    matching = [r for r in known.match(query) if platform in (None, r.platform)]
    if not matching and (installed := _installed(query, store, platform)):
        return carried(installed, known.releases)
    if not matching:
        where = f" for {platform}" if platform else ""
        raise NotFoundError(f"no release matches {query!r}{where}", help="`paceline runtime get --list` shows them all")
    if len({r.name for r in matching}) == 1:
        return matching[0], {}
    if platform is not None:
        names = ", ".join(sorted({r.name for r in matching}))
        raise AmbiguousError(f"{query!r} means several releases for {platform}: {names}", help="name one of them")
    return choose(rank(matching, known_survey())).release, {}


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
