"""What is installed, selected and left behind, and the models."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.doctor.finding import Finding, Patient, Status
from paceline.errors import PacelineError
from paceline.manager import inventory
from paceline.plugins import PluginState
from paceline.preferences import CHANNEL, MINIMUM_AGE, Policy
from paceline.store import health
from paceline.store.manifest import MANIFEST
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from paceline.plugins import Plugin
    from paceline.types import Release, Runtime

_CLOCKS_DIFFER = timedelta(days=1)


def plugins(patient: Patient) -> Iterator[Finding]:
    """Which plugins work, and why the others do not."""
    for plugin in patient.plugins.plugins:
        if plugin.state is PluginState.ACTIVE:
            yield Finding("plugins", Status.OK, f"{plugin.name} brings {', '.join(plugin.engines) or 'no engine'}")
        else:
            status = Status.NOTE if plugin.state is PluginState.DISABLED else Status.PROBLEM
            text = f"the plugin {plugin.name} is {plugin.state}" + (f": {plugin.error}" if plugin.error else "")
            yield Finding("plugins", status, text, _of_plugin(plugin))


def runtimes(patient: Patient) -> Iterator[Finding]:
    """Whether each runtime is whole, as far as sizes tell, and has an engine."""
    store = patient.store
    installed = store.runtimes()
    for runtime in installed:
        state = health.quick(runtime.directory)
        if not state.ok:
            text = f"{runtime.id} is {state.state}: {'; '.join(state.problems)}"
            yield Finding("runtimes", Status.PROBLEM, text, store.how_to_mend(runtime.id))
        elif runtime.engine not in patient.plugins.engines:
            text = f"no plugin provides the engine {runtime.engine} of {runtime.id}"
            way_out = f"install its plugin again, or `paceline runtime remove {runtime.id}`"
            yield Finding("runtimes", Status.PROBLEM, text, way_out)
        else:
            yield Finding("runtimes", Status.OK, f"{runtime.id} is whole")
    for name in store.incomplete():
        text = f"{name} is incomplete: {'; '.join(health.quick(store.folder / name).problems)}"
        yield Finding("runtimes", Status.PROBLEM, text, f"paceline runtime repair {name}, or remove {name}")
    if not installed:
        yield Finding("runtimes", Status.NOTE, "no runtime is installed", "paceline runtime get")


def selection(patient: Patient) -> Iterator[Finding]:
    """Whether what is selected and pinned is there, what stands in for what, and what is held."""
    store = patient.store
    chosen = store.selection()
    lost = [f"{i}, selected for {name.upper()}," for name, i in chosen.formats.items() if store.find(i) is None]
    lost += [f"{i}, selected for the model {name}," for name, i in chosen.models.items() if store.find(i) is None]
    for what in lost:
        way_out = "choose another with `paceline runtime select`, or `paceline runtime rollback`"
        yield Finding("selection", Status.PROBLEM, f"{what} is not installed", way_out)
    for pinned in chosen.pins:
        if store.find(pinned) is None:
            text = f"{pinned} is pinned and not installed"
            yield Finding("selection", Status.NOTE, text, f"paceline runtime unpin {pinned}")
    for model, found in chosen.stand_ins_in_force().items():
        way_out = f"`paceline runtime unselect --model {model}` has {found.instead_of} tried again"
        yield Finding("selection", Status.NOTE, inventory.say_stand_in(model, found), way_out)
    for release, hold in chosen.holds.items():
        way_out = f"`paceline runtime unhold {release}` lets updates choose it again"
        yield Finding("selection", Status.NOTE, inventory.say_hold(release, hold), way_out)
    if not lost:
        said = ", ".join(f"{name.upper()}: {i}" for name, i in chosen.formats.items())
        yield Finding("selection", Status.OK, said or "nothing is selected")


def updates(patient: Patient) -> Iterator[Finding]:
    """Whether a newer version of what is installed is known that an update would take; no network is asked."""
    from paceline.manager.updates import plan_updates
    from paceline.registry import load_registry
    from paceline.survey import take_survey
    from paceline.verdict import judge

    store = patient.store
    registry = load_registry(patient.plugins, home=store.home)
    for remark in registry.remarks:
        yield Finding("updates", Status.NOTE, remark.message, remark.help)
    facts, chosen = take_survey(patient.environ, cache=patient.cache), store.selection()
    policy = Policy(patient.environ.get(CHANNEL) or "stable", _days(patient.environ.get(MINIMUM_AGE)))
    ranked = [(release, judge(release, facts)) for release in registry.releases]
    by_format = {name: r for name in chosen.formats if (r := store.selected(name)) is not None}
    selected = {r.id for r in by_format.values()}
    others = _newest_of_others(store.runtimes(), by_format.values())
    known: list[tuple[Runtime, Release]] = []
    for each in (by_format, *(dict.fromkeys(r.formats, r) for r in others)):
        planned, kept = plan_updates(
            each,
            ranked,
            channel=policy.channel,
            pinned=chosen.pins,
            held=chosen.holds,
            published_until=policy.published_until(datetime.now(UTC)),
        )
        known += [(u.runtime, u.release) for u in planned]
        known += [(k.runtime, k.newer) for k in kept if k.newer is not None and k.pinned]
    for runtime, newer in known:
        text = f"{runtime.name} is installed as {runtime.version}, and {newer.version} is known"
        if runtime.id not in selected:
            way_out = f"paceline runtime get {newer.id}"
        elif runtime.id in chosen.pins:
            way_out = (
                f"it is pinned: `paceline runtime unpin {runtime.id}`, then `paceline runtime update {runtime.name}`"
            )
        else:
            way_out = f"paceline runtime update {runtime.name}"
        yield Finding("updates", Status.NOTE, text, way_out)
    yield Finding("updates", Status.OK, f"{len(registry.releases)} releases are known")


def leftovers(patient: Patient) -> Iterator[Finding]:
    """What broken-off installations and ended processes left."""
    found = left_behind(patient)
    if not found:
        yield Finding("leftovers", Status.OK, "nothing was left behind")
    else:
        names = ", ".join(str(p.relative_to(patient.store.home)) for p in found[:3])
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        text = f"ended processes left {names}{more}; unless an installation is under way, it only takes room"
        yield Finding("leftovers", Status.NOTE, text, "paceline doctor --fix")


def left_behind(patient: Patient) -> tuple[Path, ...]:
    """Files and folders that count for nothing."""
    staging = patient.store.staging
    staged = tuple(sorted(staging.iterdir())) if staging.is_dir() else ()
    return (*staged, *patient.store.ended_uses())


def clock(patient: Patient) -> Iterator[Finding]:
    """Whether anything was installed in the future."""
    now, late = datetime.now(UTC), []
    for runtime in patient.store.runtimes():
        when = _installed_at(runtime.directory / MANIFEST)
        if when is not None and when > now + _CLOCKS_DIFFER:
            late.append(f"{runtime.id} was installed on {when:%Y-%m-%d}")
    if late:
        text = f"{', '.join(late)}, and today is {now:%Y-%m-%d}: the clock was, or is, wrong"
        yield Finding("clock", Status.NOTE, text, "set the clock; clean-up goes by when a runtime was used last")
    else:
        yield Finding("clock", Status.OK, f"it is {now:%Y-%m-%d %H:%M} UTC, after everything installed")


def models(patient: Patient) -> Iterator[Finding]:
    """Whether the folders can be read, and which files are no models."""
    from paceline.library import Library, ModelFolder

    main, *extra = patient.models
    for folder in patient.models:
        try:
            list(folder.iterdir())
        except FileNotFoundError:
            if folder is not main:
                text = f"the folder {folder} of PACELINE_EXTRA_MODELS does not exist"
                yield Finding("models", Status.PROBLEM, text, "make it, or take it out of the variable")
        except OSError as error:
            text = f"the models folder {folder} cannot be read: {error.strerror}"
            yield Finding("models", Status.PROBLEM, text, "give yourself the right to read it, or set PACELINE_MODELS")
    library = Library(
        patient.plugins.formats.values(), [ModelFolder(f) for f in patient.models], patient.cache / "models.sqlite"
    )
    for bad in library.problems():
        yield Finding("models", Status.PROBLEM, f"{bad.path}: {bad.error.message}", bad.error.help or "fetch it again")
    known = library.models()
    text = f"{len(known)} models in {main}" + (f" and {len(extra)} more folders" if extra else "")
    yield Finding("models", Status.OK, text)
    served = {f for r in patient.store.runtimes() for f in r.formats}
    for name in sorted({m.format for m in known} - served):
        text = f"no installed runtime serves the {name.upper()} models"
        yield Finding("models", Status.NOTE, text, "`paceline runtime get --list` shows what could")


def _of_plugin(plugin: Plugin) -> str:
    match plugin.state:
        case PluginState.DISABLED:
            return f"PACELINE_PLUGINS leaves it out: add {plugin.name} to it, or unset it"
        case PluginState.MISSING:
            return "`paceline plugins install` installs plugins; or take it out of PACELINE_PLUGINS"
        case _:
            return "update or uninstall its package; `paceline plugins` tells more"


def _newest_of_others(runtimes: Iterable[Runtime], selected: Iterable[Runtime]) -> list[Runtime]:
    """The newest runtime of each name that none of the `selected` has."""
    names, found = {runtime.name for runtime in selected}, []
    for runtime in runtimes:  # the newest of a name first
        if runtime.name not in names:
            names.add(runtime.name)
            found.append(runtime)
    return found


def _days(text: str | None) -> timedelta:
    try:
        return timedelta(days=float(text or 0))
    except (ValueError, OverflowError):  # the commands that go by it say so
        return timedelta(0)


def _installed_at(manifest: Path) -> datetime | None:
    try:
        return datetime.fromisoformat(read_object(manifest)["installed_at"]).astimezone(UTC)
    except (OSError, KeyError, TypeError, ValueError, PacelineError):
        return None
