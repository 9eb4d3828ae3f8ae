"""Runtimes built by hand: an environment somewhere else takes its place among the installed ones.

A link is a folder among the runtimes with a manifest and nothing else. Its id is `<engine>-<name>@linked`: which
version of the engine the environment holds is its owner's business, and may be another one tomorrow. Paceline starts
workers of it and writes nothing into it; updates, repair and clean-up leave it alone, `remove` takes away the link.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import paceline
from paceline import paths
from paceline.errors import NotFoundError, SmokeTestError, UsageError
from paceline.manager.installation import start_once
from paceline.progress import Phase, silent
from paceline.store import transaction
from paceline.store.manifest import MANIFEST, SCHEMA_VERSION
from paceline.types import Runtime
from paceline.untrusted_json import parse

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from paceline.engine import Engine
    from paceline.progress import Progress
    from paceline.store import Store

VERSION = "linked"
"""What stands for the version in the id of a link."""


def link(
    name: str,
    path: Path,
    store: Store,
    engines: Mapping[str, Engine],
    progress: Progress = silent,
    *,
    engine: str | None = None,
    taken: Collection[str] = (),
) -> Runtime:
    """Let the environment at `path` (its folder, or its interpreter) be the runtime `<engine>-<name>@linked`.

    Which of `engines` it holds is found out by asking its interpreter for their packages, unless `engine` says so; then
    the engine's worker is started in it once. `taken`: names of releases, which a link may not have. A link of the same
    name and engine is replaced. Raises UsageError for a name or a path that will not do, NotFoundError when the
    environment holds no known engine, SmokeTestError when the worker does not start in it.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a runtime", help="use letters, digits, dots, dashes and underscores: `my-build`"
        )
    path = paths.given(path)
    python = _interpreter(path)
    if store.folder.resolve() in path.resolve().parents:
        raise UsageError(f"{path} is a runtime that Paceline installed", help="`paceline runtime select` chooses it")
    held = _ask(python, [e.upstream.package for e in engines.values() if e.upstream is not None])
    candidates = [engines[engine]] if engine is not None else _held(path, held, engines)
    if clash := next((f"{e.name}-{name}" for e in candidates if f"{e.name}-{name}" in taken), None):
        raise UsageError(
            f"{clash} is the name of releases, which a link would be taken for",
            help="choose a name of your own, such as `my-build`",
        )
    with store.installing(progress):
        _check_not_of_another_engine(candidates, name, store)
        progress(Phase.CHECK, message="starting the engine once")
        runtime, info = _first_that_starts(candidates, name, path, python, store)
        staged = store.staging / f"{runtime.id}.{os.getpid()}"
        with transaction.explained(f"linking {path}", store.home):
            try:
                transaction.make_folder(staged)
                transaction.write_json(staged / MANIFEST, _manifest(runtime, path, held, info))
                linked = store.publish(staged, runtime.id)
            finally:
                transaction.discard(staged)
        store.select_where_none(linked)
        progress(Phase.DONE, message=f"linked {linked.id}")
        return linked


@dataclass(frozen=True)
class _Held:
    """What an environment says of itself."""

    python: str
    """Its Python's version, `3.12.4`."""
    packages: Mapping[str, str]
    """Of the packages asked for, those it has, with their versions."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}")
_PLACES = ("bin/python", "Scripts/python.exe", "python.exe", "env/bin/python", "env/Scripts/python.exe")
_ASK = """
import json, sys
from importlib import metadata
found = {}
for name in json.loads(sys.argv[1]):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"python": ".".join(map(str, sys.version_info[:3])), "packages": found}))
"""
_ASK_TIMEOUT_S = 60.0


def _interpreter(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path} does not exist", help="give the folder of an environment, or its interpreter")
    found = next((path / place for place in _PLACES if (path / place).is_file()), None)
    if found is None:
        raise UsageError(
            f"{path} is no environment: it has no {_PLACES[0]}",
            help="give the folder that `python -m venv`, uv or conda made, or the interpreter itself",
        )
    return found


def _ask(python: Path, packages: Sequence[str]) -> _Held:
    argv = [str(python), "-I", "-B", "-c", _ASK, json.dumps(sorted(set(packages)))]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_ASK_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        told = parse(done.stdout)
        return _Held(told["python"], told["packages"])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{python} does not start: {error}", help="give an environment whose Python runs") from None
    except (ValueError, KeyError, TypeError):
        said = done.stderr.strip()[-300:] or f"exit status {done.returncode}"
        raise UsageError(f"{python} is no Python that runs: {said}", help="give an environment of Python") from None


def _held(path: Path, held: _Held, engines: Mapping[str, Engine]) -> list[Engine]:
    found = [e for e in engines.values() if e.upstream is not None and e.upstream.package in held.packages]
    if not found:
        known = ", ".join(f"{e.name} ({e.upstream.package})" for e in engines.values() if e.upstream is not None)
        raise NotFoundError(
            f"{path} holds the package of no engine: {known or 'none is known'}",
            help="install the engine's package into it, or name the engine with --engine",
        )
    return found


def _check_not_of_another_engine(candidates: Sequence[Engine], name: str, store: Store) -> None:
    """`cuda-x` of the engine `llama.cpp` and `x` of `llama.cpp-cuda` have one id."""
    for engine in candidates:
        there = store.find(f"{engine.name}-{name}@{VERSION}")
        if there is not None and there.engine != engine.name:
            raise UsageError(
                f"{there.id} is there already, of the engine {there.engine} and linked to {there.linked}; this would "
                f"be one of the engine {engine.name}",
                help=f"choose another name, or unlink that one: `paceline runtime remove {there.id}`",
            )


def _first_that_starts(
    candidates: Sequence[Engine], name: str, path: Path, python: Path, store: Store
) -> tuple[Runtime, dict[str, Any]]:
    """A package may serve several engines, such as one for processors and one for GPUs; the first that starts is it."""
    failures: list[SmokeTestError] = []
    for engine in candidates:
        folder = store.folder / f"{engine.name}-{name}@{VERSION}"
        runtime = Runtime(engine.name, VERSION, name, engine.formats, (), folder, python, linked=path)
        try:
            return runtime, start_once(runtime, engine)
        except SmokeTestError as error:
            failures.append(error)
    first = failures[0]
    if len(failures) == 1:
        raise SmokeTestError(f"{path} is not linked: {first.message}", help=first.help)
    reasons = "; ".join(f"{e.name}: {f.message}" for e, f in zip(candidates, failures, strict=True))
    raise SmokeTestError(f"{path} is not linked, no engine starts in it: {reasons}", help=first.help)


def _manifest(runtime: Runtime, path: Path, held: _Held, info: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "id": runtime.id,
        "engine": runtime.engine,
        "version": runtime.version,
        "platform": runtime.platform,
        "formats": runtime.formats,
        "features": info["features"],
        "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "paceline": paceline.__version__,
        "linked": {"path": str(path), "python": str(runtime.python), "version": info["version"]},
        "python": {"version": held.python},
        "smoke_test": info,
    }
