"""A version that nothing lists, asked of the package index because somebody named it exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from paceline import network, paths, query
from paceline.errors import NotFoundError
from paceline.manager import inventory
from paceline.registry import found_file, upstream
from paceline.store import transaction
from paceline.versions import is_local

if TYPE_CHECKING:
    from collections.abc import Callable

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

    `asking` is told of the question before it is asked. Raises NotFoundError for what is neither listed nor found, with
    the versions that could be had, and InstallError when the index cannot be asked.
    """
    try:
        return inventory.ranked(store, plugins, text, channel=channel, tell=tell)
    except NotFoundError as missing:
        if text is None:
            raise
        found = find(store, plugins, text, missing, asking=asking)
    return inventory.ranked(store, plugins, found.id, channel=channel)


def find(
    store: Store,
    plugins: Plugins,
    text: str,
    missing: NotFoundError,
    *,
    platform: str | None = None,
    asking: Callable[[str], None] = lambda sentence: None,
) -> Release:
    """The release of a version that nothing lists, now remembered, of `platform` or the best for this machine.

    Raises `missing` where the package index cannot know it, and as `ranked_or_found`.
    """
    head, _, version = text.strip().partition("@")
    asked = _best_to_ask(store, plugins, head, platform) if head and _is_published(version) else None
    if asked is None:
        raise missing
    template, source = asked
    if network.is_offline():
        raise NotFoundError(
            f"{missing.message}, and the package index was not asked: Paceline is offline", help=network.HELP
        )
    asking(f"{text} is not listed: asking the package index for {source.package} {version}")
    found = upstream.exactly(template, source, version, cache=paths.cache())
    with transaction.explained("remembering what the package index has", store.home):
        upstream.remember(found_file(store.home), [found])
    return found


def _is_published(version: str) -> bool:
    try:
        Version(version)
    except InvalidVersion:
        return False
    return not is_local(version)


def _best_to_ask(store: Store, plugins: Plugins, head: str, platform: str | None) -> tuple[Release, Upstream] | None:
    """Of the releases that a query without its version means, the best for this machine that comes from an index."""
    from paceline.survey import known_survey
    from paceline.verdict import rank

    known = inventory.known(store, plugins).releases
    meant = [r for r in query.select(head, known) if platform in (None, r.platform)]
    names = dict.fromkeys(release.name for release in meant)
    templates = [t for name in names if (t := upstream.template(known, name)) is not None]
    for release, _ in rank(templates, known_survey()):
        source = plugins.engines[release.engine].upstream
        if source is not None and upstream.can_be_asked(release, source):
            return release, source
    return None
