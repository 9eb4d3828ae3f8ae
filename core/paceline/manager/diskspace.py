"""Whether the disks have room for an installation, asked before anything starts."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from paceline.errors import InstallError
from paceline.packages.locked import applies, download_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paceline.store import Store
    from paceline.types import Package, Release

MARGIN_BYTES = 32 * 1000 * 1000
"""On top of the runtime's own size: the log, the hashes of its files, and room to go on working."""

WHEEL_UNPACKS_TO = 4
"""Installed bytes for one of a wheel, byte code included, for releases whose size nobody measured. All packages of MLX
0.32.2 for Linux's CPU: 3.9 to 5.0, as their files and the Python are; mlx-metal 0.32.4: 3.9."""
LIBRARY_UNPACKS_TO = 2.5
"""The same for wheels of `LIBRARY_BYTES` and more: mlx-cuda-12 1.9, NVIDIA's NVRTC 2.5, its cuSPARSE 1.3."""
LIBRARY_BYTES = 64 * 1000 * 1000
SOURCE_UNPACKS_TO = 3
"""Bytes for one of a source archive and of its build tools' wheels; llama-cpp-python 0.3.36 and its: 2.8 and 2.2."""
BUILD_TREE = 1
"""Bytes that compiling writes for one of the source archive; llama-cpp-python 0.3.36 for CPUs: 0.44 after 112 of its
140 steps."""
CUDA_BUILD_TREE = 8
"""The same where kernels are compiled for NVIDIA's GPUs: not measured, but what a wheel for all of them holds."""
UNSIZED_WHEEL_BYTES = 64 * 1000 * 1000
"""Taken for a wheel of an index page of its own whose size neither page nor server tells: llama-cpp-python's for
processors is below."""
UNSIZED_CUDA_WHEEL_BYTES = 600 * 1000 * 1000
"""The same with kernels for all of NVIDIA's GPUs."""


@dataclass(frozen=True)
class Space:
    """What one folder's file system needs and has."""

    folder: Path
    needed_bytes: int
    free_bytes: int
    estimated: bool = False
    """Whether a part of what is needed is an estimate, and neither measured nor told by an index."""


def space_for(
    release: Release, store: Store, cache: Path, told: Mapping[str, int] = MappingProxyType({})
) -> tuple[Space, ...]:
    """What installing `release` needs on each file system it writes to, were nothing of it here.

    A cache on the home's file system shares its bytes with the runtime (uv links the files); on another it needs as
    much again. What is fetched lies in the cache until it is unpacked, and so does the source of what is built, with
    its tools; compilers write to the folder for temporary files. Sizes that nobody measured are estimated from those of
    the packages. `told`: by name, what indexes say of packages whose lock says no size. Empty where no size is known at
    all, as offline of a plugin's release whose lock has none.
    """
    need = _need(release, store.size_of_newest(release.name), told)
    if need is None:
        return ()
    runtime = need.installed + MARGIN_BYTES
    spaces: dict[int, tuple[Path, int, int, bool]] = {}
    for folder, shared, own, guessed in (
        (store.home, runtime, 0, need.installed_guessed),
        (cache, runtime, need.fetched + need.source, need.installed_guessed or need.fetched_guessed or need.source > 0),
        (Path(tempfile.gettempdir()), 0, need.build_tree, True),
    ):
        if shared + own:
            device = _existing(folder).stat().st_dev
            named, most, sum_of_own, before = spaces.get(device, (folder, 0, 0, False))
            spaces[device] = (named, max(most, shared), sum_of_own + own, before or guessed)
    return tuple(
        Space(folder, shared + own, shutil.disk_usage(_existing(folder)).free, guessed)
        for folder, shared, own, guessed in spaces.values()
    )


def check_space(release: Release, store: Store, cache: Path, told: Mapping[str, int] = MappingProxyType({})) -> None:
    """Raise InstallError with the numbers when a disk is too full for `release`; `told` as for `space_for`."""
    try:
        spaces = space_for(release, store, cache, told)
    except OSError:  # a file system that does not say decides nothing
        return
    for space in spaces:
        if space.free_bytes < space.needed_bytes:
            about = "about " if space.estimated else ""
            raise InstallError(
                f"installing {release.id} needs {about}{_mb(space.needed_bytes)} in {space.folder}, "
                f"where {_mb(space.free_bytes)} are free",
                help="`paceline runtime prune --cache` frees space; or set PACELINE_HOME, PACELINE_CACHE and, for what "
                "is compiled, TMPDIR to folders on another disk",
            )


@dataclass(frozen=True)
class _Need:
    """Bytes, by what they are for."""

    fetched: int
    fetched_guessed: bool
    """Whether nobody says how large a part of that is."""
    installed: int
    installed_guessed: bool
    source: int
    """Of what is built: its source and the tools for it, unpacked; estimated."""
    build_tree: int
    """Estimated."""


def _need(release: Release, newest_bytes: int | None, told: Mapping[str, int]) -> _Need | None:
    """`newest_bytes`: of an installed version of the release, which stands for one that nobody measured."""
    recipe, gpu = release.recipe, release.requires.gpu
    cuda = gpu is not None and gpu.make == "nvidia"
    wanted = [p for p in recipe.packages if applies(p)]
    installed = recipe.installed_bytes or newest_bytes
    if installed is None and not any(p.size or p.name in told for p in wanted):
        return None
    unsized = UNSIZED_CUDA_WHEEL_BYTES if cuda else UNSIZED_WHEEL_BYTES
    sources = sum(_size(p, unsized, told) for p in wanted if p.source)
    wheels = {p: _size(p, unsized, told) for p in wanted if not p.source}
    tools = sum(_size(p, 0, told) for p in recipe.build_packages if applies(p) and p not in wheels) if sources else 0
    tree = int(sources * (CUDA_BUILD_TREE if cuda else BUILD_TREE))
    if installed is None:  # of a source stays less than its building wrote
        installed = tree + sum(int(n * _unpacks_to(n)) for n in wheels.values())
    return _Need(
        fetched=sources + tools + sum(n for p, n in wheels.items() if not p.file),
        fetched_guessed=download_bytes(recipe, told) is None,
        installed=installed,
        installed_guessed=recipe.installed_bytes is None,
        source=int(SOURCE_UNPACKS_TO * (sources + tools)),
        build_tree=tree,
    )


def _size(package: Package, unsized: int, told: Mapping[str, int]) -> int:
    """Of its largest file, since uv finds out which one it is. Where nobody says it, `unsized` for one from an index
    page of its own, as engines have, and nothing for others."""
    return max(package.size, default=told.get(package.name, unsized if package.index else 0))


def _unpacks_to(wheel_bytes: int) -> float:
    return LIBRARY_UNPACKS_TO if wheel_bytes >= LIBRARY_BYTES else WHEEL_UNPACKS_TO


def _existing(folder: Path) -> Path:
    return next(f for f in (folder, *folder.parents) if f.exists())


def _mb(n: int) -> str:
    return f"{n / 1e6:.0f} MB"
