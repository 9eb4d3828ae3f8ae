"""How a release becomes a runtime:

    lock -> staging folder -> environment -> smoke test -> manifest -> one rename -> selection where there is none

Killed at any moment, this leaves either a whole runtime or something in staging/ that counts for nothing and that the
next installation deletes. Nothing that is installed is ever changed.
"""

from __future__ import annotations

import hashlib
import os
import platform as this_platform
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import paceline
from paceline import paths, transaction
from paceline.environment import base_interpreter, make_environment
from paceline.errors import InstallError, PacelineError, SmokeTestError
from paceline.progress import Phase, silent
from paceline.store import MANIFEST, SCHEMA_VERSION, python_of
from paceline.types import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from paceline.engine import Engine
    from paceline.progress import Progress
    from paceline.store import Store
    from paceline.types import Release

SMOKE_TIMEOUT_S = 120.0


def install(
    release: Release,
    store: Store,
    engine: Engine,
    progress: Progress = silent,
    *,
    allow_unpinned: bool = False,
    cache: Path | None = None,
) -> Runtime:
    """Install `release` and return its runtime; one that is already installed is returned as it is.

    The runtime is selected for those of its formats that have none. Whether this machine can run the release is the
    verdict's business, and the caller's. Raises InstallError (with BuildError and SmokeTestError) and StoreError; the
    log of a failed installation is kept under <home>/logs. An exception out of `progress`, or Ctrl-C, cancels.
    """
    _check_pinned(release, allow_unpinned)
    with _installing(store, progress):
        runtime = store.find(release.id)
        if runtime is not None:
            progress(Phase.DONE, message=f"{release.id} is already installed")
            store.select_where_none(runtime)
            return runtime
        runtime = _make(release, store, engine, progress, cache or paths.cache())
        store.select_where_none(runtime)
        progress(Phase.DONE, message=f"installed {runtime.id}")
        return runtime


def _check_pinned(release: Release, allowed: bool) -> None:
    unpinned = ", ".join(f"{p.name} {p.version} from {p.index}" for p in release.recipe.unpinned)
    if unpinned and not allowed:
        raise InstallError(
            f"{release.id} takes {unpinned}, where no hashes are published: what is downloaded cannot be checked",
            help="choose a release that is built from source, or accept it with --allow-unpinned",
        )


@contextmanager
def _installing(store: Store, progress: Progress) -> Iterator[None]:
    """Hold the home's install lock, which the system takes back from a process that dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(store.lock_file("install"))
    with transaction.explained("taking the install lock", store.home):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(Phase.WAIT, message="another installation is under way, waiting for it")
            lock.acquire(poll_interval=0.1)
    try:
        transaction.sweep(store.staging)
        yield
    finally:
        lock.release()


def _make(release: Release, store: Store, engine: Engine, progress: Progress, cache: Path) -> Runtime:
    staged = store.staging / f"{release.id}.{os.getpid()}"
    with transaction.explained(f"installing {release.id}", store.home):
        try:
            staged.mkdir(parents=True)
            make_environment(staged, release.recipe, cache=cache, progress=progress)
            progress(Phase.CHECK, message="starting the engine once")
            info = _smoke_test(release, staged, engine)
            progress(Phase.CHECK, message="hashing the files")
            files = _hash_files(staged)
            transaction.write_json(staged / "files.json", files)
            transaction.write_json(staged / MANIFEST, _manifest(release, staged, files, info))
            progress(Phase.PUBLISH)
            return store.publish(staged, release.id)
        except PacelineError as error:
            log = _keep_log(release, store, staged)
            error.help = "\n".join(filter(None, [error.help, f"the whole log is {log}" if log else None])) or None
            raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _smoke_test(release: Release, staged: Path, engine: Engine) -> dict[str, Any]:
    """Start the worker in the staged environment; what it says of itself goes into the manifest."""
    from paceline.serving.smoke import smoke_test

    runtime = Runtime(
        engine=release.engine,
        version=release.version,
        platform=release.platform,
        formats=release.formats,
        features=release.features,
        directory=staged,
        python=python_of(staged / "env"),
    )
    try:
        spec = engine.worker(runtime)
    except Exception as error:
        raise SmokeTestError(
            f"engine {engine.name} could not say how its worker starts: {type(error).__name__}: {error}",
            help="report it to the author of the plugin; `paceline plugins` names it",
        ) from error
    return asdict(smoke_test(spec, sample=_sample(release.formats), timeout_s=SMOKE_TIMEOUT_S))


def _sample(formats: tuple[str, ...]) -> Path | None:
    """The smallest model shipped with Paceline that one of `formats` can read."""
    files = [f for name in formats for f in paths.samples().glob(f"*.{name}")]
    return min(files, key=lambda f: f.stat().st_size, default=None)


def _hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every regular file, and the target of every link, by path below `folder`."""
    found = sorted(p for p in folder.rglob("*") if p.is_symlink() or p.is_file())

    def describe(path: Path) -> dict[str, Any]:
        if path.is_symlink():
            return {"link": str(path.readlink())}
        with path.open("rb") as file:
            return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    with ThreadPoolExecutor() as pool:
        return {
            p.relative_to(folder).as_posix(): entry for p, entry in zip(found, pool.map(describe, found), strict=True)
        }


def _manifest(release: Release, staged: Path, files: dict[str, dict[str, Any]], info: dict[str, Any]) -> dict[str, Any]:
    recipe = release.recipe
    return {
        "schema_version": SCHEMA_VERSION,
        "id": release.id,
        "engine": release.engine,
        "version": release.version,
        "platform": release.platform,
        "channel": release.channel,
        "formats": release.formats,
        "features": release.features,
        "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "paceline": paceline.__version__,
        "python": {"version": this_platform.python_version(), "base": base_interpreter()},
        "lock": [asdict(p) for p in recipe.packages],
        "build_lock": [asdict(p) for p in recipe.build_packages],
        "config_settings": recipe.config_settings,
        "unpinned": [p.name for p in recipe.unpinned],
        "smoke_test": info,
        "size_bytes": sum(entry.get("size", 0) for entry in files.values()),
        "files_sha256": hashlib.sha256((staged / "files.json").read_bytes()).hexdigest(),
    }


def _keep_log(release: Release, store: Store, staged: Path) -> Path | None:
    log = staged / "build.log"
    if not log.exists():
        return None
    kept = store.logs / f"{release.id}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    return shutil.copyfile(log, kept)
