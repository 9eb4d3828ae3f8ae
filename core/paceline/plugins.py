"""Find the plugins, load them, and let none of them stop the host.

`PACELINE_PLUGINS` is read before anything is imported: unset loads every entry point of the group `paceline`,
a comma-separated list of their names loads those alone, an empty value loads none.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any

import pluggy

from paceline import hookspecs
from paceline.engine import Engine, ModelFormat
from paceline.errors import NotFoundError
from paceline.types import Release

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


@dataclass(frozen=True)
class Plugins:
    """Every plugin found, and the engines and formats of the working ones, by name."""

    plugins: tuple[Plugin, ...]
    engines: dict[str, Engine] = field(default_factory=dict)
    formats: dict[str, ModelFormat] = field(default_factory=dict)

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
    """Load every plugin once per process. What plugins print while they load goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        return _Loader().run(_entry_points(), _wanted(os.environ.get("PACELINE_PLUGINS")))


def _wanted(value: str | None) -> frozenset[str] | None:
    return None if value is None else frozenset(n.strip() for n in value.split(",") if n.strip())


@dataclass(frozen=True)
class _Found:
    """An entry point and the distribution it belongs to; without one where that distribution's list is unreadable."""

    distribution: str
    version: str | None
    entry_point: metadata.EntryPoint | None = None
    error: str | None = None


def _entry_points() -> list[_Found]:
    """First-party plugins first, so that nobody can take their names; then by distribution and name."""

    def order(found: _Found) -> tuple[bool, str, str]:
        name = found.entry_point.name if found.entry_point else ""
        return (found.distribution != "paceline", found.distribution, name)

    return sorted(_search(), key=order)


def _search() -> Iterator[_Found]:
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
        try:
            entry_points = [ep for ep in distribution.entry_points if ep.group == GROUP]
        except Exception as error:
            yield _Found(name, version, error=f"its entry_points.txt cannot be read: {_say(error)}")
            continue
        for ep in entry_points:
            yield _Found(name, version, ep)


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
        ep, distribution, version = found.entry_point, found.distribution, found.version
        if ep is None:
            return Plugin(distribution, None, distribution, version, PluginState.BROKEN, error=found.error)
        if wanted is not None and ep.name not in wanted:
            return Plugin(ep.name, ep.value, distribution, version, PluginState.DISABLED)
        try:
            if ep.name in self._names:
                raise _Broken(f"the plugin name {ep.name!r} is already taken by {self._names[ep.name]}")
            self._names[ep.name] = f"{distribution} {version}"
            engines, formats = self._load(ep)
        except _Broken as broken:
            return Plugin(ep.name, ep.value, distribution, version, PluginState.BROKEN, error=str(broken))
        return Plugin(ep.name, ep.value, distribution, version, PluginState.ACTIVE, engines, formats)

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
        except (Exception, SystemExit) as error:
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
        except (Exception, SystemExit) as error:
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
    try:
        releases = list(engine.releases())
    except (Exception, SystemExit) as error:
        raise _Broken(f"engine {engine.name!r}: releases() raised {_say(error)}") from error
    for release in releases:
        if not isinstance(release, Release) or release.engine != engine.name:
            raise _Broken(f"engine {engine.name!r}: releases() returned {_show(release)}, which is no release of it")


def _attribute(value: object, name: str) -> object:
    try:
        return getattr(value, name, None)
    except Exception as error:
        raise _Broken(f"{type(value).__name__}.{name} raised {_say(error)}") from error


def _show(value: object) -> str:
    try:
        return repr(value)[:200]
    except Exception:
        return f"a {type(value).__name__}"


def _say(error: BaseException) -> str:
    """An error of a plugin in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
