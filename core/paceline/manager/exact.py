"""A version that somebody named exactly, asked of the package index where nothing lists it, or not for this Python."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from paceline import network, paths, query
from paceline.errors import NotFoundError
from paceline.manager import inventory
from paceline.packages import python_versions
from paceline.registry import FOUND, found_file, upstream
from paceline.store import transaction
from paceline.versions import is_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from paceline.plugins import Plugins
    from paceline.store import Store
    from paceline.types import Release, Upstream, Verdict


def ranked_or_found(
    store: Store,
    plugins: Plugins,
    text: str | None,
    *,
    channel: str = "stable",
    tell: Callable[[str], None] = lambda sentence: None,
    asking: Callable[[str], None] = lambda sentence: None,
) -> list[tuple[Release, Verdict]]:
    """As `inventory.ranked`; a version that nothing lists is looked for in the package index and remembered.

    So is one that only the package index has brought, for another platform or another Python than those here. `asking`
    is told of the question before it is asked. Raises NotFoundError for what is neither listed nor found, with the
    versions that could be had, and InstallError when the index cannot be asked.
    """
    try:
        listed = inventory.ranked(store, plugins, text, channel=channel, tell=tell)
    except NotFoundError as missing:
        if text is None:
            raise
        found = find(store, plugins, text, missing, asking=asking)
    else:
        if text is None or any(verdict.ok for _, verdict in listed):
            return listed
        here = found_for(store, plugins, text, [release for release, _ in listed], asking=asking)
        if here is None:
            return listed
        found = covering(store, plugins, here, [python_versions.here()], asking=asking)
    return inventory.ranked(store, plugins, found.id, channel=channel)


def find(
    store: Store,
    plugins: Plugins,
    text: str,
    missing: NotFoundError,
    *,
    platform: str | None = None,
    wanted: Sequence[str] = (),
    asking: Callable[[str], None] = lambda sentence: None,
) -> Release:
    """The release of a version that nothing lists, now remembered, of `platform` or the best for this machine.

    It is locked for the Pythons `wanted`, by default for that here. Raises `missing` where the package index cannot
    know it, and as `upstream.exactly`.
    """
    head, _, version = text.strip().partition("@")
    asked = _to_ask(store, plugins, head, platform) if head and _is_published(version) else []
    if not asked:
        raise missing
    (template, _, source), *_ = asked
    if network.is_offline():
        raise NotFoundError(
            f"{missing.message}, and the package index was not asked: Paceline is offline", help=network.HELP
        )
    asking(f"{text} is not listed: asking the package index for {source.package} {version}")
    others = _platforms(store, plugins, template, source) if wanted else ()
    found = upstream.exactly(template, source, version, cache=paths.cache(), wanted=wanted, others=others)
    return _remembered(store, found)


def found_for(
    store: Store,
    plugins: Plugins,
    text: str,
    listed: Sequence[Release],
    *,
    wanted: Sequence[str] = (),
    asking: Callable[[str], None] = lambda sentence: None,
) -> Release | None:
    """The release for this machine where `listed`, what `text` means, is what an index brought for others.

    Of these one is returned as it is, locked for whatever Pythons; one that is not among them is found as by `find`.
    None where `text` names no version, or something else than the package index lists it, or nothing here could run it.
    """
    head, _, version = text.strip().partition("@")
    if not head or not _is_published(version) or any(release.source != FOUND for release in listed):
        return None
    asked = _to_ask(store, plugins, head, None)
    if not asked or not asked[0][1].ok:
        return None
    name = asked[0][0].name
    missing = NotFoundError(f"no release matches {text!r} for this machine")
    listed_here = next((release for release in listed if release.name == name), None)
    return listed_here or find(store, plugins, text, missing, wanted=wanted, asking=asking)


def covering(
    store: Store,
    plugins: Plugins,
    release: Release,
    wanted: Sequence[str],
    *,
    asking: Callable[[str], None] = lambda sentence: None,
) -> Release:
    """`release`, locked for the Pythons `wanted` too, where the package index brought it; else as it is.

    What was added is remembered. Raises as `upstream.exactly`, and OfflineError.
    """
    lacking = [python for python in wanted if not python_versions.is_admitted(python, release.requires.python)]
    template = upstream.template(inventory.known(store, plugins).releases, release.name)
    source = plugins.engine(release.engine).upstream
    if release.source != FOUND or not lacking or template is None or source is None:
        return release
    only = f"{release.id} is locked for Python {release.requires.python} only"
    network.require_online(f"{only}, and the package index was not asked for {python_versions.listed(lacking)}")
    asking(f"{only}: asking the package index for {python_versions.listed(lacking)}")
    others = _platforms(store, plugins, template, source)

    def asked(these: Sequence[str]) -> Release:
        found = upstream.exactly(
            template, source, release.version, cache=paths.cache(), wanted=these, like=release, others=others
        )
        return upstream.join(release, found)

    found = asked(lacking)
    if not all(python_versions.is_admitted(python, found.requires.python) for python in wanted):
        found = asked(wanted)  # its recipe has changed since it was locked
    return _remembered(store, found)


def _remembered(store: Store, found: Release) -> Release:
    with transaction.explained("remembering what the package index has", store.home):
        upstream.remember(found_file(store.home), [found])
    return replace(found, source=FOUND)


def _is_published(version: str) -> bool:
    try:
        Version(version)
    except InvalidVersion:
        return False
    return not is_local(version)


def _to_ask(store: Store, plugins: Plugins, head: str, platform: str | None) -> list[tuple[Release, Verdict, Upstream]]:
    """Of the releases that a query without its version means, those that come from an index, best for here first."""
    from paceline.survey import known_survey
    from paceline.verdict import rank

    known = inventory.known(store, plugins).releases
    meant = [r for r in query.select(head, known) if platform in (None, r.platform)]
    templates = _templates(known, dict.fromkeys(release.name for release in meant))
    return [
        (release, verdict, source)
        for release, verdict in rank(templates, known_survey())
        if (source := plugins.engines[release.engine].upstream) is not None and upstream.can_be_asked(release, source)
    ]


def _platforms(store: Store, plugins: Plugins, like: Release, source: Upstream) -> list[Release]:
    """What the package index can be asked about for each platform of an engine."""
    known = inventory.known(store, plugins).releases
    templates = _templates(known, dict.fromkeys(r.name for r in known if r.engine == like.engine))
    return [release for release in templates if upstream.can_be_asked(release, source)]


def _templates(known: Iterable[Release], names: Iterable[str]) -> list[Release]:
    known = tuple(known)
    return [template for name in names if (template := upstream.template(known, name)) is not None]
