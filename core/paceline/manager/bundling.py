"""Which releases go into a bundle, and what becomes of one on this machine."""

from __future__ import annotations

import platform as machine
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paceline.errors import AmbiguousError, IncompatibleError, NotFoundError, UnpinnedError, UsageError
from paceline.manager import inventory
from paceline.manager.local_packages import carried
from paceline.types import Compatibility, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from paceline.manager.bundles import Bundle
    from paceline.plugins import Plugins
    from paceline.preferences import Policy
    from paceline.registry import Registry
    from paceline.store import Store
    from paceline.types import Release, Runtime

_NOT_ASKED = Verdict(Compatibility.COMPATIBLE, "it is for another machine, which cannot be asked")


def python_here() -> str:
    """The Python that runtimes are built on here, as bundles name it: `3.12`."""
    return ".".join(machine.python_version_tuple()[:2])


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


def chosen(
    queries: Sequence[str], store: Store, plugins: Plugins, policy: Policy, *, platform: str | None = None
) -> Content:
    """The releases that `queries` mean, each the best of `platform` or for this machine.

    A query that only an installed runtime has the name of means that runtime as it was installed. Raises NotFoundError,
    AmbiguousError, and UnpinnedError for what no index publishes hashes of.
    """
    releases: dict[str, Release] = {}
    wheels: dict[str, Path] = {}
    known = inventory.known(store, plugins)
    remarks = [str(remark) for remark in known.remarks]
    for query in queries:
        release, kept, said = _release(query, store, known, policy, platform)
        releases[release.id], wheels, remarks = release, wheels | kept, [*remarks, *said]
    return Content(list(releases.values()), wheels, remarks)


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


def _release(
    query: str, store: Store, known: Registry, policy: Policy, platform: str | None
) -> tuple[Release, dict[str, Path], Sequence[str]]:
    from paceline.survey import known_survey
    from paceline.verdict import rank

    matching = [r for r in known.match(query) if platform in (None, r.platform)]
    if not matching and (installed := _installed(query, store, platform)):
        return *carried(installed, known.releases), ()
    if not matching:
        where = f" for {platform}" if platform else ""
        raise NotFoundError(f"no release matches {query!r}{where}", help="`paceline runtime get --list` shows them all")
    names = sorted({r.name for r in matching})
    if platform is not None and len(names) > 1:
        raise AmbiguousError(
            f"{query!r} means several releases for {platform}: {', '.join(names)}", help="name one of them"
        )
    ranked = rank(matching, known_survey(), channel=policy.channel)
    if platform is not None or (len(names) == 1 and not any(verdict.ok for _, verdict in ranked)):
        ranked = [(release, _NOT_ASKED) for release in matching]
    try:
        choice = inventory.chosen(ranked, store, query, policy=policy)
    except UnpinnedError as error:
        error.help = "a bundle holds only what is pinned by hash: name another release"
        raise
    return choice.release, {}, choice.remarks


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
