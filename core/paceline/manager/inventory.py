"""What is installed and what could be: what a query means among them, and how lists show them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from paceline.errors import AmbiguousError, NotFoundError, UsageError
from paceline.store import health
from paceline.store.selection import describe_hold, describe_stand_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from paceline.library import Library
    from paceline.manager.policy import Choice
    from paceline.plugins import Plugins
    from paceline.preferences import Policy
    from paceline.registry import Registry
    from paceline.store import Selection, Store
    from paceline.store.selection import Hold, StandIn
    from paceline.types import Release, Runtime, Verdict


def known(store: Store, plugins: Plugins, *, as_published: bool = False) -> Registry:
    """Everything that could be installed, with what updates found, as `load_registry` says."""
    from paceline.registry import load_registry

    return load_registry(plugins, home=store.home, as_published=as_published)


def ranked(
    store: Store,
    plugins: Plugins,
    query: str | None = None,
    *,
    channel: str = "stable",
    tell: Callable[[str], None] = lambda remark: None,
) -> list[tuple[Release, Verdict]]:
    """The releases that a query means, or all, best first, each with its verdict on this machine.

    What a verdict names as the way out is the best of all releases, also of those that the query does not mean.
    `channel`: see `verdict.rank`. `tell` is told what should be said of the registries. Raises NotFoundError when there
    is no such release.
    """
    from paceline.survey import known_survey
    from paceline.verdict import rank

    registry = known(store, plugins)
    for remark in registry.remarks:
        tell(str(remark))
    matching = {r.id for r in (registry.match(query) if query else registry.releases)}
    if not matching:
        what = f"no release matches {query!r}" if query else "no release is known"
        raise NotFoundError(
            what, help="`paceline runtime get --list` shows every release, `paceline plugins` the engines"
        )
    judged = rank(registry.releases, known_survey(), channel=channel)
    return [(release, verdict) for release, verdict in judged if release.id in matching]


def chosen(
    ranked: Sequence[tuple[Release, Verdict]],
    store: Store,
    query: str | None,
    *,
    policy: Policy,
    allow_incompatible: bool = False,
) -> Choice:
    """What `policy.choose` takes of the releases that `query` means.

    One that is held, or too recent for `policy`, only where the query names a version.
    """
    from paceline.manager.policy import choose

    named = query is not None and "@" in query
    return choose(
        ranked,
        allow_incompatible=allow_incompatible,
        allow_unpinned=policy.allow_unpinned,
        held=() if named else store.selection().holds,
        channel=policy.channel,
        published_until=None if named else policy.published_until(datetime.now(UTC)),
        prefer=policy.prefer,
    )


def newest_installed(store: Store, query: str) -> Runtime:
    """The newest installed version, not held, of the one name that a query means.

    Raises UsageError for a query with a version, NotFoundError and AmbiguousError.
    """
    if "@" in query:
        raise UsageError(f"{query!r} names a version already", help="leave out the version, or ask for no latest one")
    held = store.selection().holds
    found = [r for r in store.match(query) if r.id not in held]
    if not found:
        raise NotFoundError(f"every installed runtime that matches {query!r} is held", help="`paceline runtime unhold`")
    names = dict.fromkeys(r.name for r in found)
    if len(names) > 1:
        raise AmbiguousError(
            f"{query!r} means several runtimes: {', '.join(names)}", help=f"give the name, such as `{found[0].name}`"
        )
    return found[0]


def installed_names(store: Store, query: str | None = None) -> list[str]:
    """The names of the runtimes that a query means, or of all, also of those that are incomplete."""
    incomplete = store.incomplete()
    if query is None:
        return [*(r.id for r in store.runtimes()), *incomplete]
    return [query] if query in incomplete else [r.id for r in store.match(query)]


def installed_or_known(store: Store, plugins: Plugins, query: str) -> str:
    """The id of the one version that a query means: installed, known, or not listed yet and given by its full name."""
    try:
        return store.get(query).id
    except NotFoundError as missing:
        catalogue = known(store, plugins)
        found = catalogue.match(query)
        if not found:
            names = {r.name for r in store.runtimes()} | {r.name for r in catalogue.releases}
            return _version_to_come(query, names, missing)
        if len(found) > 1:
            raise AmbiguousError(
                f"{query!r} means several versions: {', '.join(r.id for r in found)}",
                help=f"give the full name, such as `{found[0].id}`",
            ) from None
        return found[0].id


def _version_to_come(text: str, names: Collection[str], missing: NotFoundError) -> str:
    """`text` where it is `NAME@VERSION`, of one of the release `names`; raises `missing`, or says what is missing."""
    from paceline.registry.reading import VERSION

    name, _, version = text.strip().partition("@")
    if not version:
        raise missing
    if name not in names:
        raise NotFoundError(
            f"{missing.message}, and of a version that is not listed the full name is needed",
            help="such as `llama.cpp-linux-x86_64-cpu@0.3.99`; `paceline runtime get --list` shows the names",
        ) from None
    if not VERSION.fullmatch(version):
        raise UsageError(f"{version!r} is no version", help="give it as a release has it, such as `0.3.99`") from None
    return f"{name}@{version}"


def one_of(query: str, names: Collection[str], what: str) -> str:
    """The one of `names`, full ids, that `query` is, or whose parts it names. `what` they are: `held`."""
    found = [name for name in names if name == query] or [name for name in names if _is_named(name, query)]
    if not found:
        raise NotFoundError(f"nothing {what} matches {query!r} ({what}: {', '.join(names) or 'none'})")
    if len(found) > 1:
        raise AmbiguousError(f"{query!r} means several: {', '.join(found)}", help="give the full name")
    return found[0]


def model_of(text: str, selection: Selection, library: Callable[[], Library]) -> str:
    """The id under which `selection` has the model that `text` means: an id in it, or what `library` calls so.

    A model that is no longer in the library is known by its id alone. Raises AmbiguousError.
    """
    known = {*selection.models, *selection.stand_ins_in_force()}
    for model_id in (text, text.strip().lower()):
        if model_id in known:
            return model_id
    try:
        return library().get(text).id
    except NotFoundError:
        return text


def _is_named(full: str, query: str) -> bool:
    """Whether a full id has the parts that a query names; the runtime itself, which would tell more, may be gone."""
    name, _, version = query.partition("@")
    full_name, _, full_version = full.partition("@")
    if version:
        return version == full_version and all(part in full_name for part in name.split(":"))
    return query in full or all(part in full_name for part in query.split(":"))


def describe_runtime(runtime: Runtime, store: Store, selection: Selection) -> dict[str, Any]:
    """An installed runtime as JSON shows it."""
    state, used = health.glance(runtime.directory), store.last_used(runtime)
    hold, stand_ins = selection.holds.get(runtime.id), selection.stand_ins_in_force()
    return {
        "id": runtime.id,
        "name": runtime.name,
        "engine": runtime.engine,
        "version": runtime.version,
        "platform": runtime.platform,
        "formats": list(runtime.formats),
        "features": list(runtime.features),
        "directory": str(runtime.directory),
        "python": str(runtime.python),
        "linked": str(runtime.linked) if runtime.linked is not None else None,
        "selected_for": list(selection.formats_of(runtime.id)),
        "selected_for_models": list(selection.models_of(runtime.id)),
        "stands_in_for": {m: describe_stand_in(s) for m, s in stand_ins.items() if s.runtime == runtime.id},
        "pinned": runtime.id in selection.pins,
        "held": hold is not None,
        "hold": describe_hold(hold) if hold is not None else None,
        "size_bytes": store.size(runtime),
        "last_used": used.isoformat(timespec="seconds") if used is not None else None,
        "in_use_by": list(store.in_use_by(runtime)),
        "state": state.state.value,
        "problems": list(state.problems),
    }


def describe_selection(selection: Selection) -> dict[str, Any]:
    """What is selected, and why where that was not the user's choice, as JSON shows it."""
    return {
        "formats": dict(selection.formats),
        "models": dict(selection.models),
        "stand_ins": {m: describe_stand_in(found) for m, found in selection.stand_ins_in_force().items()},
        "previous": {name: list(ids) for name, ids in selection.previous.items()},
        "pinned": list(selection.pins),
        "held": {release: describe_hold(hold) for release, hold in selection.holds.items()},
    }


def say_hold(release_id: str, hold: Hold) -> str:
    """A sentence: what is held, since when and why."""
    since = f" since {_moment(hold.at)}" if hold.at is not None else ""
    return f"{release_id} is held{since}" + (f": {hold.reason}" if hold.reason else "")


def say_stand_in(model_id: str, found: StandIn) -> str:
    """A sentence: what serves a model in the place of what, since when and why."""
    return (
        f"{model_id} is served by {found.runtime} since {_moment(found.at)}, because {found.instead_of} did not load "
        f"it: {found.reason}"
    )


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def describe_release(release: Release, verdict: Verdict, *, installed: bool) -> dict[str, Any]:
    """A release as JSON shows it."""
    from paceline.packages.locked import download_bytes

    return {
        "id": release.id,
        "name": release.name,
        "engine": release.engine,
        "version": release.version,
        "platform": release.platform,
        "channel": release.channel,
        "source": release.source,
        "formats": list(release.formats),
        "features": list(release.features),
        "installed": installed,
        "built_here": [p.name for p in release.recipe.packages if p.source],
        "expected_build_s": release.recipe.expected_build_s,
        "download_bytes": download_bytes(release.recipe),
        "unpinned": [p.name for p in release.recipe.unpinned],
        "notes": release.notes,
        "verdict": verdict,
    }
