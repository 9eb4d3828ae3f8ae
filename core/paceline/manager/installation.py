"""How a release becomes a runtime:

    lock -> staging folder -> environment -> smoke test -> manifest -> one rename -> selection where there is none

Killed at any moment, this leaves either a whole runtime or something in staging/ that counts for nothing and that the
next installation deletes. Nothing that is installed is ever changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import paceline
from paceline import paths
from paceline.errors import InstallError, PacelineError, PluginError, SmokeTestError, UnpinnedError
from paceline.manager.diskspace import check_space
from paceline.packages import equal_files, first_use, native_builds, unhashed
from paceline.packages.depot import Depot
from paceline.packages.environment import PACKAGES, make_environment
from paceline.packages.indexes import Indexes
from paceline.packages.locked import applies
from paceline.packages.uv import base_interpreter
from paceline.progress import Phase, silent
from paceline.store import health, transaction
from paceline.store.digests import sha256_of
from paceline.store.manifest import FILES, MANIFEST, SCHEMA_VERSION, python_of
from paceline.types import GpuRequirement, Package, Recipe, Release, Requirements, Runtime
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from paceline.engine import Engine
    from paceline.packages.depot import PackageFile
    from paceline.packages.gathering import Carrier, Supply
    from paceline.progress import Progress
    from paceline.store import Store
    from paceline.types import WorkerSpec

SMOKE_TIMEOUT_S = 300.0
"""Some engines compile their GPU kernels when they are first used."""


def install(
    release: Release,
    store: Store,
    engine: Engine,
    progress: Progress = silent,
    *,
    allow_unpinned: bool = False,
    cache: Path | None = None,
    supply: Carrier | None = None,
    wheel: Path | None = None,
) -> Runtime:
    """Install `release` and return its runtime; one that is installed and whole is returned as it is.

    Whole is what has all its files, of their sizes. What a bundle brings (`supply`) is whole when every file has its
    hash: to install it again is how a damaged runtime is mended where no index can be asked.

    Packages without hashes need `allow_unpinned` the first time; what they are then is recorded and required later.
    Packages that the cache lacks come from `supply`, by default from the package indexes the user has configured.
    `wheel`: where the package of it lies that has a `file` (see `local_packages`); the runtime keeps a copy.

    The runtime is selected for those of its formats that have none. Whether this machine can run the release is the
    verdict's business, and the caller's. Raises InstallError (with BuildError and SmokeTestError), StoreError, and
    InUseError before anything is made when a process uses a broken one of that id; the log of a failed installation is
    kept under <home>/logs. An exception out of `progress`, or Ctrl-C, cancels.
    """
    release = replace(release, recipe=first_use.pinned(release.recipe, store.home))
    if not allow_unpinned:
        check_pinned(release)
    with store.installing(progress):
        runtime = store.find(release.id)
        if runtime is not None and supply is not None:
            progress(Phase.CHECK, message="hashing the files")
        if runtime is not None and (health.sizes if supply is None else health.full)(runtime.directory).ok:
            progress(Phase.DONE, message=f"{release.id} is already installed")
            store.select_where_none(runtime)
            return runtime
        store.check_unused(release.id)
        runtime = _make(release, store, engine, progress, cache or paths.cache(), supply=supply, wheel=wheel)
        store.select_where_none(runtime)
        progress(Phase.DONE, message=f"installed {runtime.id}")
        return runtime


def start_once(runtime: Runtime, engine: Engine, gpu: GpuRequirement | None = None) -> dict[str, Any]:
    """Start a worker of `runtime`, have it generate, and end it; what it says of itself is for the manifest.

    `gpu`: what its release asks for. Raises SmokeTestError when it does not start, sees no such GPU or does not
    generate what is expected.
    """
    from paceline.serving.samples import sample_for
    from paceline.serving.smoke import smoke_test

    spec, sample = worker_of(runtime, engine), sample_for(runtime.formats)
    return asdict(smoke_test(spec, sample=sample, gpu=gpu, timeout_s=SMOKE_TIMEOUT_S))


def worker_of(runtime: Runtime, engine: Engine) -> WorkerSpec:
    """How `engine` starts a worker of `runtime`. Raises SmokeTestError when it cannot say."""
    from paceline.serving import specification

    try:
        return specification.worker_of(engine, runtime)
    except PluginError as error:
        raise SmokeTestError(error.message, help=error.help) from error


def repair(
    name: str,
    store: Store,
    engine: Engine,
    progress: Progress = silent,
    *,
    release: Release | None = None,
    cache: Path | None = None,
) -> Runtime:
    """Make the damaged runtime `name` whole: its own lock is installed again beside it, and the two change places.

    `release` is taken where the runtime's manifest cannot say what it was. One that is whole in every file is returned
    as it is. Raises InUseError when a process uses it and InstallError when it cannot be mended; it is then left as it
    was.
    """
    folder = store.folder / name
    with store.installing(progress):
        runtime = store.find(name)
        if runtime is not None and runtime.linked is not None:
            raise InstallError(
                f"{name} is not repaired: it is linked to {runtime.linked}, which is its owner's",
                help=f"mend that environment, or link another: `paceline runtime link {runtime.platform} PATH`",
            )
        progress(Phase.CHECK, message="hashing the files")
        if runtime is not None and health.full(folder).ok:
            return runtime
        store.check_unused(name)
        wanted = recorded(folder, release) or release
        if wanted is None:
            raise InstallError(
                f"{name} cannot be repaired: its manifest is unreadable and no release of that name is known",
                help=f"remove it with `paceline runtime remove {name}`",
            )
        try:
            wheels = [folder / PACKAGES / p.file for p in wanted.recipe.packages if p.file]
            wheel = wheels[0] if wheels else None
            return _make(wanted, store, engine, progress, cache or paths.cache(), wheel=wheel)
        except PacelineError as error:
            reason = f"{name} could not be repaired and is left as it was: {error.message}"
            raise InstallError(reason, help=error.help) from error


def recorded(folder: Path, known: Release | None) -> Release | None:
    """The release that the manifest in `folder` records; None when it cannot be read."""
    try:
        data = read_object(folder / MANIFEST)
        recipe = Recipe(
            packages=tuple(_package(p) for p in data["lock"]),
            build_packages=tuple(_package(p) for p in data["build_lock"]),
            config_settings=data["config_settings"],
            # Not recorded by an older Paceline.
            prune=tuple(data.get("prune", known.recipe.prune if known else ())),
            installed_bytes=data.get("size_bytes"),
        )
        return Release(
            engine=data["engine"],
            version=data["version"],
            platform=data["platform"],
            formats=tuple(data["formats"]),
            requires=Requirements(cpu_features=tuple(data.get("needs_cpu", ())), gpu=_gpu(data, known)),
            recipe=recipe,
            channel=data["channel"],
            features=tuple(data["features"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _gpu(data: dict[str, Any], known: Release | None) -> GpuRequirement | None:
    if "needs_gpu" not in data:  # not recorded by an older Paceline
        return known.requires.gpu if known else None
    return GpuRequirement(**data["needs_gpu"]) if data["needs_gpu"] else None


def _package(data: dict[str, Any]) -> Package:
    return Package(**{**data, "sha256": tuple(data["sha256"]), "size": tuple(data.get("size", ()))})


def check_pinned(release: Release) -> None:
    """Raise UnpinnedError that names the packages without a hash."""
    unpinned = ", ".join(f"{p.name} {p.version} from {p.index}" for p in release.recipe.unpinned)
    if unpinned:
        raise UnpinnedError(
            f"{release.id} takes {unpinned}, where no hashes are published: what is downloaded cannot be checked",
            help="choose a release that is built from source, or accept it with --allow-unpinned",
        )


def _make(
    release: Release,
    store: Store,
    engine: Engine,
    progress: Progress,
    cache: Path,
    *,
    supply: Carrier | None = None,
    wheel: Path | None = None,
) -> Runtime:
    store.check_one_mount()
    staged, depot = store.staging / f"{release.id}.{os.getpid()}", Depot(cache)
    unpinned = {p.name for p in release.recipe.unpinned}
    with contextlib.closing(Indexes(cache)) as indexes, transaction.explained(f"installing {release.id}", store.home):
        if unpinned and supply is None:
            progress(Phase.DOWNLOAD, message="looking at packages without published hashes")
        found = unhashed.locate(filter(applies, release.recipe.unpinned), indexes, depot) if supply is None else []
        check_space(release, store, cache, unhashed.sizes(found))
        try:
            transaction.make_folder(staged)
            if wheel is not None:
                _bring(wheel, release, staged)
            brought: Mapping[str, PackageFile] = {}
            if supply is not None:
                brought = supply.unhashed([p for p in release.recipe.packages if p.index and applies(p)])
            elif found:
                brought = unhashed.bring(found, indexes, depot, progress)
            if brought:
                release = replace(release, recipe=first_use.pinned_to_found(release.recipe, brought))
            source: Supply = supply or indexes
            made = make_environment(staged, release.recipe, cache=cache, supply=source, progress=progress)
            if others := [other.directory / "env" for other in store.runtimes() if other.linked is None]:
                progress(Phase.CHECK, message="linking the files that other runtimes have as well")
                equal_files.share(staged / "env", others, cache, made.digests)
            progress(Phase.CHECK, message="starting the engine once")
            info = start_once(_runtime(release, staged), engine, release.requires.gpu)
            progress(Phase.CHECK, message="hashing the files")
            files = health.describe_files(staged, made.digests)
            transaction.write_json(staged / FILES, files)
            manifest = _manifest(release, staged, files, info, cache, made.build_s)
            transaction.write_json(staged / MANIFEST, manifest | {"unpinned": sorted(unpinned)})
            progress(Phase.PUBLISH)
            first_use.record(store.home, [p for p in release.recipe.packages if p.name in unpinned and p.sha256])
            return store.publish(staged, release.id)
        except PacelineError as error:
            log = _keep_log(release, store, staged)
            other = first_use.way_out(error, release.recipe, store.home)
            error.help = (
                "\n".join(filter(None, [error.help, other, f"the whole log is {log}" if log else None])) or None
            )
            raise
        finally:
            transaction.discard(staged)


def _bring(wheel: Path, release: Release, staged: Path) -> None:
    """Copy the wheel that came from this machine beside the environment; its hash must be the one that is pinned."""
    package = next(p for p in release.recipe.packages if p.file)
    copy = transaction.make_folder(staged / PACKAGES) / str(package.file)
    transaction.step("copy", copy)
    try:
        shutil.copyfile(wheel, copy)
    except FileNotFoundError:
        raise InstallError(
            f"{wheel} is gone, which {release.id} is made with",
            help="give the wheel again: `paceline runtime get PATH`",
        ) from None
    digest = sha256_of(copy)
    if digest not in package.sha256:
        raise InstallError(
            f"{wheel} is not the file that {release.id} is made with: its sha256 is {digest}",
            help="give the wheel again: `paceline runtime get PATH`",
        )


def _runtime(release: Release, staged: Path) -> Runtime:
    return Runtime(
        engine=release.engine,
        version=release.version,
        platform=release.platform,
        formats=release.formats,
        features=release.features,
        directory=staged,
        python=python_of(staged / "env"),
    )


def _manifest(
    release: Release,
    staged: Path,
    files: dict[str, dict[str, Any]],
    info: dict[str, Any],
    cache: Path,
    build_s: float | None,
) -> dict[str, Any]:
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
        "python": health.base_python(base_interpreter()),
        "libc": health.libc(),
        "needs_cpu": native_builds.needed(cache, recipe, staged / "env") or release.requires.cpu_features,
        "needs_gpu": asdict(release.requires.gpu) if release.requires.gpu else None,
        "lock": [asdict(p) for p in recipe.packages],
        "build_lock": [asdict(p) for p in recipe.build_packages],
        "config_settings": recipe.config_settings,
        "prune": recipe.prune,
        "build_s": round(build_s, 1) if build_s is not None else None,
        "smoke_test": info,
        "size_bytes": sum(entry.get("size", 0) for entry in files.values()),
        "files_sha256": hashlib.sha256((staged / FILES).read_bytes()).hexdigest(),
        "quick_check": health.quick_part(files),
    }


def _keep_log(release: Release, store: Store, staged: Path) -> Path | None:
    log = staged / "build.log"
    if not log.exists():
        return None
    kept = store.logs / f"{release.id}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        transaction.make_folder(kept.parent)
        transaction.step("copy", kept)
        return shutil.copyfile(log, kept)
    except OSError:  # a full disk must not hide what went wrong
        return None
