"""From the question "is there something newer?" to a selected runtime: sources are asked, updates planned and made.

`updates` decides, purely; this module asks, installs and selects. The command line, `serve` and the API all use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from paceline import network, paths, query, refusals
from paceline.errors import PacelineError, SmokeTestError, StoreError
from paceline.manager import inventory
from paceline.manager.installation import install
from paceline.manager.updates import Kept, Update, plan_updates, withdrawn_since
from paceline.packages import python_versions
from paceline.preferences import Policy, holds_all
from paceline.progress import silent
from paceline.registry import FOUND, found_file, upstream
from paceline.store import transaction
from paceline.types import Release, Runtime

if TYPE_CHECKING:
    from paceline.plugins import Plugins
    from paceline.progress import Progress
    from paceline.registry.trust import TrustedRegistry
    from paceline.store import Store


class Failure(StrEnum):
    """Why a source had nothing to say."""

    UNANSWERED = "unanswered"
    """It could not be asked, or gave no usable answer. Nothing follows from it; another time it may answer."""
    UNTRUSTED = "untrusted"
    """It answered, and the answer failed its verification. Nothing of it was used, and somebody should look."""


@dataclass(frozen=True)
class Problem:
    """What went wrong with a source."""

    source: str
    failure: Failure
    message: str


@dataclass(frozen=True)
class Answer:
    """The releases a source knows besides the shipped ones, those that it knows no longer, and what went wrong."""

    releases: tuple[Release, ...] = ()
    problems: tuple[Problem, ...] = ()
    withdrawn: tuple[Release, ...] = ()
    """Found there before, and offered no longer: no update takes them."""


class Source(Protocol):
    """Where new releases come from, besides the registry that is shipped."""

    @property
    def name(self) -> str:
        """For people: `the package index`."""

    def newer(self, runtimes: Sequence[Runtime]) -> Answer:
        """Releases newer than `runtimes`, of the same names.

        Never raises PacelineError: what fails is a Problem. Remembers what it found, so that `load_registry` lists it
        from then on, and forgets what is withdrawn.
        """


@dataclass(frozen=True)
class Findings:
    """What a check found."""

    updates: tuple[Update, ...] = ()
    kept: tuple[Kept, ...] = ()
    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()
    """What should be said of the catalogue."""


@dataclass(frozen=True)
class PackageIndex:
    """The package index that the user has configured for uv or pip (see `registry.upstream`)."""

    plugins: Plugins
    store: Store
    policy: Policy = field(default_factory=Policy)
    tell: Callable[[str], None] = lambda sentence: None
    """Told which question is asked, before it is."""

    name = "the package index"

    def newer(self, runtimes: Sequence[Runtime]) -> Answer:
        if network.is_offline():
            return Answer(problems=(self._unanswered("Paceline is offline: the package index was not asked"),))
        known = inventory.known(self.store, self.plugins).releases
        held, now = self.store.selection().holds, datetime.now(UTC)
        found: list[Release] = []
        withdrawn: list[Release] = []
        problems: list[Problem] = []
        for name, engine in {r.name: r.engine for r in runtimes}.items():
            source = self.plugins.engines[engine].upstream if engine in self.plugins.engines else None
            template = upstream.template(known, name)
            if source is None or template is None or not upstream.can_be_asked(template, source):
                continue
            self.tell(f"asking the package index for {source.package} newer than {template.version}")
            try:
                answer = upstream.newest(
                    template,
                    source,
                    cache=paths.cache(),
                    minimum_age=self.policy.minimum_age,
                    prerelease=holds_all(self.policy.channel),
                    without=[id.removeprefix(f"{name}@") for id in held if id.startswith(f"{name}@")],
                    now=now,
                )
            except PacelineError as error:
                problems.append(self._unanswered(error.message))
                continue
            if answer.release is not None:
                found.append(answer.release)
            withdrawn += withdrawn_since(
                (release for release in known if release.name == name and release.source == FOUND),
                answer.version,
                python=python_versions.here(),
                channel=self.policy.channel,
                held=held,
                published_until=self.policy.published_until(now),
            )
        try:
            with transaction.explained("remembering what the package index has", self.store.home):
                # What is installed may have to be repaired: it stays known.
                forgotten = {release.id for release in withdrawn} - set(inventory.installed_names(self.store))
                upstream.remember(found_file(self.store.home), found, forgotten=forgotten)
        except PacelineError as error:
            problems.append(self._unanswered(error.message))
        return Answer(tuple(found), tuple(problems), tuple(withdrawn))

    def _unanswered(self, message: str) -> Problem:
        return Problem(self.name, Failure.UNANSWERED, message)


@dataclass(frozen=True)
class SignedRegistries:
    """The registries whose root is trusted here (see `registry.signed`)."""

    store: Store
    tell: Callable[[str], None] = lambda sentence: None

    name = "the signed registries"

    def newer(self, runtimes: Sequence[Runtime]) -> Answer:
        from paceline.registry import trust

        names = {runtime.name for runtime in runtimes}
        releases: list[Release] = []
        problems: list[Problem] = []
        try:
            trusted = trust.trusted(self.store.home)
            for registry in trusted:
                self.tell(f"asking the registry {registry.name}")
                problems += self._refreshed(registry)
                known = trust.verified(registry)
                releases += [r for r in known.dated() if r.name in names] if known is not None else []
        except PacelineError as error:
            problems.append(Problem(self.name, Failure.UNANSWERED, error.message))
        return Answer(tuple(releases), tuple(problems))

    def _refreshed(self, registry: TrustedRegistry) -> list[Problem]:
        from paceline.registry import signed

        outcome = signed.refresh(registry)
        if outcome.ok:
            return []
        refused = outcome.state is signed.State.REFUSED
        failure = Failure.UNTRUSTED if refused else Failure.UNANSWERED
        return [Problem(f"the registry {registry.name}", failure, outcome.message)]


def sources(
    store: Store,
    plugins: Plugins,
    policy: Policy,
    tell: Callable[[str], None] = lambda sentence: None,
    *,
    package_index: bool = True,
) -> tuple[Source, ...]:
    """Every source of new releases, in the order they are asked; without `package_index` only registries."""
    registries = SignedRegistries(store, tell)
    return (registries, PackageIndex(plugins, store, policy, tell)) if package_index else (registries,)


@dataclass(frozen=True)
class Selected:
    """The runtimes that updates look at."""

    formats: Mapping[str, Runtime]
    """What serves each model format."""
    models: Mapping[str, Runtime]
    """What the user chose for single models."""

    def runtimes(self) -> tuple[Runtime, ...]:
        """Each once."""
        return tuple({r.id: r for r in (*self.formats.values(), *self.models.values())}.values())


def selected_runtimes(store: Store, text: str | None = None) -> Selected:
    """The selected runtimes, or those of them that a query means.

    Raises PacelineError when the query means none that is selected, be it for one model alone.
    """
    chosen = store.selection()
    by_format = {name: store.selected(name) for name in chosen.formats}
    by_model = {model: store.find(runtime_id) for model, runtime_id in chosen.models.items()}
    found = Selected(*({key: r for key, r in by.items() if r is not None} for by in (by_format, by_model)))
    if text is None:
        return found
    wanted = {r.id for r in query.select(text, found.runtimes())}
    if not wanted:
        store.match(text)  # says so if it is not even installed
        raise PacelineError(
            f"no selected runtime matches {text!r}",
            help="only selected runtimes are updated: `paceline runtime get` installs another release beside them",
        )
    return Selected(*({key: r for key, r in by.items() if r.id in wanted} for by in (found.formats, found.models)))


def find_updates(
    selected: Selected, store: Store, plugins: Plugins, asked: Sequence[Source], policy: Policy
) -> Findings:
    """Ask the sources `asked` and plan which of the `selected` runtimes to replace on this machine."""
    from paceline.survey import known_survey
    from paceline.verdict import judge

    runtimes = selected.runtimes()
    answers = [source.newer(runtimes) for source in asked] if runtimes else []
    withdrawn = {release.id for answer in answers for release in answer.withdrawn}
    facts, chosen, catalogue = known_survey(), store.selection(), inventory.known(store, plugins)
    updates, kept = plan_updates(
        selected.formats,
        [(release, judge(release, facts)) for release in catalogue.releases],
        of_models=selected.models,
        channel=policy.channel,
        pinned=chosen.pins,
        held=chosen.holds,
        withdrawn=withdrawn,
        allow_unpinned=policy.allow_unpinned,
        published_until=policy.published_until(datetime.now(UTC)),
    )
    gone = [f"the package index no longer offers {id}: it, or what it needs, was yanked or deleted" for id in withdrawn]
    problems = tuple(problem for answer in answers for problem in answer.problems)
    return Findings(updates, kept, problems, (*map(str, catalogue.remarks), *sorted(gone)))


@dataclass(frozen=True)
class Made:
    """An update that was made: its release is installed."""

    update: Update
    runtime: Runtime
    formats: tuple[str, ...]
    """What it serves now instead of the old one; empty where somebody decided otherwise while it was installed."""


@dataclass(frozen=True)
class Failed:
    """An update that was not made."""

    update: Update
    error: PacelineError
    held: bool
    """Whether the release is held now, so that the next update does not build it again."""


def apply(
    update: Update, store: Store, plugins: Plugins, progress: Progress = silent, *, allow_unpinned: bool = False
) -> Made:
    """Install what `update` says beside the old runtime and select it for the formats that the old one still serves.

    Raises what `install` does; then nothing has changed.
    """
    engine = plugins.engine(update.release.engine)
    runtime = install(update.release, store, engine, progress, allow_unpinned=allow_unpinned)
    return Made(update, runtime, store.select_instead(update.runtime, runtime, update.formats))


def attempt(
    update: Update,
    store: Store,
    plugins: Plugins,
    progress: Progress = silent,
    *,
    allow_unpinned: bool = False,
) -> Made | Failed:
    """As `apply`, for one of several: what goes wrong is returned, also what the system refuses.

    A version that does not pass its smoke test is held: whoever updates next builds it no more, and takes an older one
    that it would hide.
    """
    try:
        return apply(update, store, plugins, progress, allow_unpinned=allow_unpinned)
    except PacelineError as error:
        held = isinstance(error, SmokeTestError)
        if held:
            try:
                store.hold(update.release.id, f"did not pass its smoke test: {error.message}")
            except StoreError:  # such as a full disk; then the next update tries it again
                held = False
        return Failed(update, error, held)
    except OSError as error:
        return Failed(update, refusals.refusal(error) or StoreError(str(error)), held=False)
