"""Find the plugins, load them, and let none of them stop the host.

`PACELINE_PLUGINS` is read before anything is imported: unset loads every entry point of the group `paceline`,
a comma-separated list of their names loads those alone, an empty value loads none.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
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

GROUP = "paceline"


class PluginState(StrEnum):
    ACTIVE = "active"
    BROKEN = "broken"
    DISABLED = "disabled"


@dataclass(frozen=True)
class Plugin:
    """One entry point of the group, and what became of it."""

    name: str
    module: str
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
    """Load every plugin once per process."""
    return _Loader().run(_entry_points(), _wanted(os.environ.get("PACELINE_PLUGINS")))


def _wanted(value: str | None) -> frozenset[str] | None:
    return None if value is None else frozenset(n.strip() for n in value.split(",") if n.strip())


def _entry_points() -> list[metadata.EntryPoint]:
    """First-party plugins first, so that nobody can take their names; then by distribution and name."""

    def order(ep: metadata.EntryPoint) -> tuple[bool, str, str]:
        distribution = ep.dist.name if ep.dist else ""
        return (distribution != "paceline", distribution, ep.name)

    return sorted(metadata.entry_points(group=GROUP), key=order)


class _Broken(Exception):
    """Why a plugin is not active, in a sentence."""


class _Loader:
    def __init__(self) -> None:
        from paceline.formats import builtin_formats

        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: list[Plugin] = []
        self._engines: dict[str, tuple[Engine, str]] = {}
        self._formats: dict[str, tuple[ModelFormat, str]] = {f.name: (f, "paceline") for f in builtin_formats()}

    def run(self, entry_points: Iterable[metadata.EntryPoint], wanted: frozenset[str] | None) -> Plugins:
        seen: dict[str, str] = {}
        for ep in entry_points:
            distribution = ep.dist.name if ep.dist else None
            version = ep.dist.version if ep.dist else None
            engines: tuple[str, ...] = ()
            formats: tuple[str, ...] = ()
            error = None
            if wanted is not None and ep.name not in wanted:
                state = PluginState.DISABLED
            else:
                try:
                    if ep.name in seen:
                        raise _Broken(f"the plugin name {ep.name!r} is already taken by {seen[ep.name]}")
                    seen[ep.name] = f"{distribution} {version}"
                    engines, formats = self._load(ep)
                    state = PluginState.ACTIVE
                except _Broken as broken:
                    state, error = PluginState.BROKEN, str(broken)
            self._plugins.append(
                Plugin(ep.name, ep.value, distribution, version, state, engines=engines, formats=formats, error=error)
            )
        return Plugins(
            tuple(self._plugins),
            {name: engine for name, (engine, _) in self._engines.items()},
            {name: fmt for name, (fmt, _) in self._formats.items()},
        )

    def _load(self, ep: metadata.EntryPoint) -> tuple[tuple[str, ...], tuple[str, ...]]:
        module = self._import(ep)
        _check_api(module)
        self._register(module, ep.name)
        try:
            # A plugin counts whole or not at all: what it claims is checked before any of it is kept.
            engines = self._claims(module, "paceline_engines", Engine, self._engines)
            formats = self._claims(module, "paceline_formats", ModelFormat, self._formats)
        except _Broken:
            self._manager.unregister(module)
            raise
        self._engines.update({e.name: (e, ep.name) for e in engines})
        self._formats.update({f.name: (f, ep.name) for f in formats})
        return tuple(e.name for e in engines), tuple(f.name for f in formats)

    def _import(self, ep: metadata.EntryPoint) -> ModuleType:
        try:
            return ep.load()  # type: ignore[no-any-return]
        except (Exception, SystemExit) as error:
            raise _Broken(f"import of {ep.value} failed: {_say(error)}") from error

    def _register(self, module: ModuleType, name: str) -> None:
        try:
            self._manager.register(module, name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.has_plugin(name):
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
                raise _Broken(f"{hook} returned {value!r}, which is no {kind.__name__}")
            name = getattr(value, "name", None)
            if not isinstance(name, str) or not name:
                raise _Broken(f"{hook} returned a {type(value).__name__} without a name")
            if name in taken or name in names:
                owner = taken[name][1] if name in taken else "itself"
                raise _Broken(f"claims the {kind.__name__.lower()} name {name!r}, already taken by plugin {owner}")
            names.add(name)
        return values


def _check_api(module: ModuleType) -> None:
    version = getattr(module, "PACELINE_API", None)
    if version is None:
        raise _Broken(f"does not say which API version it was built for (PACELINE_API = {hookspecs.API_VERSION})")
    if version != hookspecs.API_VERSION:
        raise _Broken(f"was built for plugin API {version!r}; this host has {hookspecs.API_VERSION}")


def _say(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
