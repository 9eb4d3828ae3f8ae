"""Load plugins once in a process of their own, before they are put in force: do they load, and only harm themselves?"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paceline.errors import PluginError
from paceline.untrusted_json import parse

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from paceline.plugin_folder import Held

TIMEOUT_S = 60.0
SLOW_S = 0.3
"""What loading all plugins may add to every start before it is said to be slow."""


@dataclass(frozen=True)
class Trial:
    """What loading brought."""

    engines: dict[str, tuple[str, ...]]
    """By plugin, the engines it provides."""
    formats: dict[str, tuple[str, ...]]
    seconds: float
    """What loading the new plugins took longer than loading those of the host's own environment."""

    @property
    def slow(self) -> bool:
        return self.seconds > SLOW_S


def try_plugins(folder: Path, held: Sequence[Held], added: Sequence[Held] = ()) -> Trial:
    """Load every plugin with the packages in `folder` beside the host's own; of `held`, those `added` are new.

    Raises PluginError when one of `held` does not load or brings other engines than it claims, and when a plugin of the
    host's own environment, or the host itself, does not load any more.
    """
    alone, together = _load(None), _load(folder)
    states = {plugin["name"]: plugin for plugin in together["plugins"]}
    for plugin in alone["plugins"]:
        if plugin["state"] == "active" and states.get(plugin["name"], plugin)["state"] != "active":
            raise _refused(f"with it {plugin['name']} does not load any more: {states[plugin['name']]['error']}")
    loaded = {name: p for p in together["plugins"] if p["managed"] for name in [p["name"]]}
    new = ", ".join(f"{package.name} {package.version}" for package in added)
    for package in held:
        for name in package.entry_points:
            plugin = next((p for p in together["plugins"] if p["managed"] and p["name"] == name), None)
            if plugin is None:
                raise _refused(f"{package.name} {package.version}: its plugin {name} is not found")
            if plugin["state"] != "active" and new and package not in added:  # it is in force, and was not the trouble
                raise _refused(
                    f"with {new}, {package.name} {package.version} does not load any more: it {plugin['error']}"
                )
            if plugin["state"] != "active":
                raise _refused(f"{package.name} {package.version}: {plugin['error']}")
        brought = sorted(e for name in package.entry_points for e in loaded[name]["engines"])
        if package.engines is not None and brought != list(package.engines):
            raise _refused(
                f"{package.name} {package.version} claims {_names(package.engines)} and brings {_names(brought)}"
            )
    return Trial(
        {name: tuple(plugin["engines"]) for name, plugin in loaded.items()},
        {name: tuple(plugin["formats"]) for name, plugin in loaded.items()},
        max(0.0, together["seconds"] - alone["seconds"]),
    )


_CODE = """
import json, os, sys, time
from pathlib import Path
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from paceline import plugins
began = time.perf_counter()
found = plugins.load_with(Path(sys.argv[1]) if sys.argv[1] else None).plugins
seconds = time.perf_counter() - began
fields = ("name", "state", "engines", "formats", "error", "managed")
json.dump({"seconds": seconds, "plugins": [{f: getattr(p, f) for f in fields} for p in found]}, out)
out.close()
os._exit(0)
"""


def _load(folder: Path | None) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "PACELINE_PLUGINS"}
    argv = [sys.executable, "-P", "-B", "-c", _CODE, str(folder or "")]
    try:
        done = subprocess.run(
            argv,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise _refused(f"loading it was not done within {TIMEOUT_S:.0f} s") from None
    try:
        told: dict[str, Any] = parse(done.stdout)
    except ValueError:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        said = f": {tail}" if (tail := done.stderr.strip()[-500:]) else ""
        raise _refused(f"the process that loaded it ended with {ended}{said}") from None
    return told


def _refused(reason: str) -> PluginError:
    return PluginError(
        f"nothing was changed: {reason}",
        help="report it to the plugin's author; `paceline plugins ls` shows the others",
    )


def _names(engines: Sequence[str]) -> str:
    return f"the engine {', '.join(engines)}" if engines else "no engine"
