"""Find the plugins, load them, and let none of them stop the host.

`PACELINE_PLUGINS` is read before anything is imported: unset loads every entry point of the group `paceline`,
a comma-separated list of their names loads those alone, an empty value loads none.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from paceline import hookspecs, paths, plugin_folder
from paceline.engine import Engine, ModelFormat
from paceline.errors import NotFoundError, PluginError
from paceline.plugin_faults import FAULTS
from paceline.plugin_faults import say as _say
from paceline.plugin_faults import show as _show
from paceline.types import Release, Upstream

GROUP = "paceline"


class PluginState(StrEnum):
    ACTIVE = "active"
    BROKEN = "broken"
    DISABLED = "disabled"
    MISSING = "missing"
    """`PACELINE_PLUGINS` asks for it and nothing installed provides it."""


@dataclass(frozen=True)
class Plugin:
    """One entry point of the group, and what became of it."""

    name: str
    module: str | None
    distribution: str | None
    version: str | None
    state: PluginState
    engines: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    error: str | None = None
    managed: bool = False
    """Whether `paceline plugins install` put it under the home; else it is of the host's own environment."""


@dataclass(frozen=True)
class Plugins:
    """Every plugin found, and the engines and formats of the working ones, by name."""

    plugins: tuple[Plugin, ...]
    engines: dict[str, Engine] = field(default_factory=dict)
    formats: dict[str, ModelFormat] = field(default_factory=dict)
    generation: int = 0
    """Of those under the home; see `plugin_folder.State`."""

    def engine(self, name: str) -> Engine:
        try:
            return self.engines[name]
        except KeyError:
            known = ", ".join(sorted(self.engines)) or "none"
            raise NotFoundError(
                f"no plugin provides the engine {name!r} (loaded engines: {known})",
                help="`paceline plugins` shows every plugin and why one is not active",
            ) from None

    def engines_for(self, model_format: str) -> tuple[Engine, ...]:
        return tuple(e for e in self.engines.values() if model_format in e.formats)


@cache
def load() -> Plugins:
    """Load every plugin once per process. What plugins print while they load goes to standard error.

    Those under the home are looked for after everything else on the path: they replace nothing.
    """
    wanted = _wanted(os.environ.get("PACELINE_PLUGINS"))
    home = paths.home()
    try:
        state = plugin_folder.read_state(home)
    except PluginError as error:
        return _load(None, wanted, [_Found(str(plugin_folder.state_file(home)), None, error=error.message)])
    if not state.requests:
        found = _load(None, wanted)
    elif not state.fits:
        found = _load(None, wanted, [_of_another_python(name, state) for name in sorted(state.requests)])
    else:
        found = _load(plugin_folder.packages(plugin_folder.generation(home, state.generation)), wanted)
    return replace(found, generation=state.generation)


def load_with(folder: Path | None) -> Plugins:
    """Load every plugin, with those in `folder` as the ones under the home: what a trial does in its own process."""
    return _load(folder, None)


def _load(folder: Path | None, wanted: frozenset[str] | None, more: Iterable[_Found] = ()) -> Plugins:
    if folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))
    with contextlib.redirect_stdout(sys.stderr):
        return _Loader().run([*_entry_points(folder), *more], wanted)


def _of_another_python(name: str, state: plugin_folder.State) -> _Found:
    version = next((p.version for p in state.packages if p.name == name), None)
    here = plugin_folder.python_version()
    reason = f"was installed for Python {state.python}, and this is {here}: `paceline plugins update` installs it anew"
    return _Found(name, version, error=reason, managed=True)


def _wanted(value: str | None) -> frozenset[str] | None:
    return None if value is None else frozenset(n.strip() for n in value.split(",") if n.strip())


@dataclass(frozen=True)
class _Found:
    """An entry point and the distribution it belongs to; without one where that distribution's list is unreadable."""

    distribution: str
    version: str | None
    entry_point: metadata.EntryPoint | None = None
    error: str | None = None
    managed: bool = False


def _entry_points(folder: Path | None) -> list[_Found]:
    """First-party plugins first and those in `folder` last, because of two that claim a name the first one has it."""

    def order(found: _Found) -> tuple[bool, bool, str, str]:
        name = found.entry_point.name if found.entry_point else ""
        return (found.distribution != "paceline", found.managed, found.distribution, name)

    return sorted(_search(folder), key=order)


def _search(folder: Path | None) -> Iterator[_Found]:
    """What `metadata.entry_points` finds, but one distribution with damaged metadata does not hide the others."""
    seen: set[str] = set()
    for distribution in metadata.distributions():
        text = _or_none(lambda d=distribution: d.read_text("entry_points.txt"))  # type: ignore[misc]
        if not text or f"[{GROUP}]" not in text:
            continue
        name = _or_none(lambda d=distribution: d.metadata["Name"]) or "unknown"  # type: ignore[misc]
        version = _or_none(lambda d=distribution: d.metadata["Version"])  # type: ignore[misc]
        # As on sys.path: the first distribution of a name is the one that is imported.
        normalized = name.lower().replace("_", "-").replace(".", "-")
        if name != "unknown" and normalized in seen:
            continue
        seen.add(normalized)
        managed = folder is not None and Path(str(distribution.locate_file(""))) == folder
        try:
            entry_points = [ep for ep in distribution.entry_points if ep.group == GROUP]
        except Exception as error:
            problem = f"its entry_points.txt cannot be read: {_say(error)}"
            yield _Found(name, version, error=problem, managed=managed)
            continue
        for ep in entry_points:
            yield _Found(name, version, ep, managed=managed)


def _or_none(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except Exception:
        return None


class _Broken(Exception):
    """Why a plugin is not active, in a sentence."""


class _Loader:
    def __init__(self) -> None:
        from paceline.formats import builtin_formats

        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        # Each name with its owner, for the sentence that refuses it to another.
        self._names: dict[str, str] = {}
        self._engines: dict[str, tuple[Engine, str]] = {}
        self._formats: dict[str, tuple[ModelFormat, str]] = {f.name: (f, "the host") for f in builtin_formats()}

    def run(self, found: Iterable[_Found], wanted: frozenset[str] | None) -> Plugins:
        plugins = [self._plugin(each, wanted) for each in found]
        for name in sorted((wanted or frozenset()) - {p.name for p in plugins}):
            error = "PACELINE_PLUGINS asks for it and no installed distribution provides it"
            plugins.append(Plugin(name, None, None, None, PluginState.MISSING, error=error))
        return Plugins(
            tuple(plugins),
            {name: engine for name, (engine, _) in self._engines.items()},
            {name: fmt for name, (fmt, _) in self._formats.items()},
        )

    def _plugin(self, found: _Found, wanted: frozenset[str] | None) -> Plugin:
        ep = found.entry_point
        if ep is None:
            name, version = found.distribution, found.version
            return Plugin(name, None, name, version, PluginState.BROKEN, error=found.error, managed=found.managed)
        about = (ep.name, ep.value, found.distribution, found.version)
        if wanted is not None and ep.name not in wanted:
            return Plugin(*about, PluginState.DISABLED, managed=found.managed)
        try:
            if ep.name in self._names:
                raise _Broken(f"the plugin name {ep.name!r} is already taken by {self._names[ep.name]}")
            self._names[ep.name] = f"{found.distribution} {found.version}"
            engines, formats = self._load(ep)
        except _Broken as broken:
            return Plugin(*about, PluginState.BROKEN, error=str(broken), managed=found.managed)
        return Plugin(*about, PluginState.ACTIVE, engines, formats, managed=found.managed)

    def _load(self, ep: metadata.EntryPoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Import, register and ask one plugin. It counts whole or not at all."""
        module = self._import(ep)
        _check_api(module)
        self._register(module, ep.name)
        try:
            engines = self._claims(module, "paceline_engines", Engine, self._engines)
            formats = self._claims(module, "paceline_formats", ModelFormat, self._formats)
            for engine in engines:
                _check_engine(engine)
        except _Broken:
            self._manager.unregister(module)
            raise
        self._engines.update({name: (engine, f"the plugin {ep.name}") for name, engine in _by_name(engines)})
        self._formats.update({name: (fmt, f"the plugin {ep.name}") for name, fmt in _by_name(formats)})
        return tuple(name for name, _ in _by_name(engines)), tuple(name for name, _ in _by_name(formats))

    def _import(self, ep: metadata.EntryPoint) -> ModuleType:
        try:
            return ep.load()  # type: ignore[no-any-return]
        except FAULTS as error:
            raise _Broken(f"import of {ep.value} failed: {_say(error)}") from error

    def _register(self, module: ModuleType, name: str) -> None:
        try:
            self._manager.register(module, name)
            self._manager.check_pending()
        except Exception as error:
            if self._manager.get_plugin(name) is module:
                self._manager.unregister(module)
            raise _Broken(f"does not fit the hooks: {_say(error)}") from error

    def _claims(self, module: ModuleType, hook: str, kind: type[Any], taken: dict[str, Any]) -> list[Any]:
        """Call one hook of one plugin and check everything it returns."""
        others = [p for p in self._manager.get_plugins() if p is not module]
        caller = self._manager.subset_hook_caller(hook, others)
        try:
            values = [value for result in caller() for value in result]
        except FAULTS as error:
            raise _Broken(f"{hook} raised {_say(error)}") from error
        names: set[str] = set()
        for value in values:
            if not isinstance(value, kind):
                raise _Broken(f"{hook} returned {_show(value)}, which is no {kind.__name__}")
            name = _attribute(value, "name")
            if not isinstance(name, str) or not name:
                raise _Broken(f"{hook} returned a {type(value).__name__} whose name is {_show(name)}")
            if name in taken or name in names:
                owner = taken[name][1] if name in taken else "itself"
                raise _Broken(f"claims the {_WORDS[kind]} name {name!r}, already taken by {owner}")
            names.add(name)
        return values


_WORDS: dict[type[Any], str] = {Engine: "engine", ModelFormat: "format"}


def _by_name(values: list[Any]) -> list[tuple[str, Any]]:
    return [(value.name, value) for value in values]


def _check_api(module: ModuleType) -> None:
    version = getattr(module, "PACELINE_API", None)
    if version is None:
        raise _Broken(f"does not say which API version it was built for (PACELINE_API = {hookspecs.API_VERSION})")
    if version != hookspecs.API_VERSION:
        raise _Broken(f"was built for plugin API {version!r}; this host has {hookspecs.API_VERSION}")


def _check_engine(engine: Engine) -> None:
    for attribute in ("formats", "pair_rules"):
        value = _attribute(engine, attribute)
        if not isinstance(value, tuple) or not value or not all(isinstance(v, str) for v in value):
            raise _Broken(f"engine {engine.name!r}: `{attribute}` is {_show(value)}, not a tuple of names")
    upstream = _attribute(engine, "upstream")
    if upstream is not None and not isinstance(upstream, Upstream):
        raise _Broken(f"engine {engine.name!r}: `upstream` is {_show(upstream)}, which is no Upstream")
    try:
        releases = list(engine.releases())
    except FAULTS as error:
        raise _Broken(f"engine {engine.name!r}: releases() raised {_say(error)}") from error
    for release in releases:
        if not isinstance(release, Release) or release.engine != engine.name:
            raise _Broken(f"engine {engine.name!r}: releases() returned {_show(release)}, which is no release of it")


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception as error:
        raise _Broken(f"{type(value).__name__}.{name} raised {_say(error)}") from error
