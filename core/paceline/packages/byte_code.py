"""The byte code of installed packages, compiled once for each Python and linked into every environment that needs it.

    <cache>/bytecode/<Python>-<its magic number>/<xx>/<sha256 of the source>-<sha256 of the byte code>

It is not tied to the time of its source ("unchecked hash", PEP 552), which is another one where uv has to copy files.
The path that is in it is put right by Python when it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from paceline import child
from paceline.packages.uv import base_interpreter
from paceline.store import transaction
from paceline.store.digests import files_below
from paceline.store.manifest import packages_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from paceline.store.digests import Digests

FOLDER = "bytecode"


def bring(environment: Path, cache: Path, digests: Digests) -> None:
    """Give every module in a virtual environment its byte code, from `cache` or compiled now and kept there.

    What does not compile has none. `digests` knows these files afterwards. Where `cache` cannot be written, or is on
    another file system, nothing is kept. Raises OSError when the environment cannot be written.
    """
    kept = cache / FOLDER / f"{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}"
    for packages in packages_of(environment):
        transaction.step("link", packages)
        below = files_below(packages)
        without = [name for name in below if name.endswith(".py") and _compiled(name) not in below]
        sources = _hashed(packages, without, digests)
        linked = _link(packages, sources, kept, digests)
        _make(packages, {name: sha256 for name, sha256 in sources.items() if name not in linked}, kept, digests)


def clear(cache: Path) -> None:
    """Delete from `cache` the byte code that no environment has a link to, and the folders that are empty then."""
    for folder, _, files in os.walk(cache / FOLDER, topdown=False):
        for file in files:
            with suppress(OSError):
                if os.lstat(f"{folder}/{file}").st_nlink == 1:
                    transaction.delete(Path(folder, file))
        transaction.discard_empty(Path(folder))


def _hashed(packages: Path, names: Collection[str], digests: Digests) -> dict[str, str]:
    paths = {f"{packages}/{name}": name for name in names}
    found = digests.of({path: os.stat(path) for path in paths})  # noqa: PTH116 - thousands of files
    return {paths[path]: sha256 for path, sha256 in found.items()}


def _compiled(source: str) -> str:
    """Where the byte code of a module is, both by their paths from the folder of packages."""
    folder, slash, name = source.rpartition("/")
    return f"{folder}{slash}__pycache__/{name.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"


def _link(packages: Path, sources: Mapping[str, str], kept: Path, digests: Digests) -> set[str]:
    """Link what is kept of the byte code of `sources`, by their sha256; returns which of them have it now.

    What turns out to be damaged is deleted, here and where it is kept.
    """
    known = {file.name.partition("-")[0]: file for file in kept.glob("*/*")}
    linked: dict[str, Path] = {}
    for source, sha256 in sources.items():
        if (file := known.get(sha256)) is not None:
            with suppress(FileNotFoundError):  # deleted from the cache meanwhile
                _link_or_copy(file, packages / _compiled(source))
                linked[source] = file
    hashes = _hashed(packages, [_compiled(source) for source in linked], digests)
    damaged = {s for s, file in linked.items() if hashes[_compiled(s)] != file.name.partition("-")[2]}
    for source in damaged:
        (packages / _compiled(source)).unlink()
        transaction.discard(linked[source])
    return linked.keys() - damaged


def _make(packages: Path, sources: Mapping[str, str], kept: Path, digests: Digests) -> None:
    """Compile `sources`, equal ones once, and keep what comes of it."""
    by_text: dict[str, list[str]] = {}
    for source, sha256 in sources.items():
        by_text.setdefault(sha256, []).append(source)
    _compile(packages, [source for source, *_ in by_text.values()])
    made: dict[str, str] = {}
    for sha256, (source, *others) in by_text.items():
        if (code := packages / _compiled(source)).exists():
            made[sha256] = _compiled(source)
            for other in others:
                _link_or_copy(code, packages / _compiled(other))
    hashes = _hashed(packages, made.values(), digests)
    for sha256, name in made.items():
        with suppress(OSError):  # another process keeps the same, or nothing can be kept there
            _keep(packages / name, kept / sha256[:2] / f"{sha256}-{hashes[name]}")


def _link_or_copy(file: Path, to: Path) -> None:
    to.parent.mkdir(exist_ok=True)
    try:
        to.hardlink_to(file)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links, or too many of them
        shutil.copyfile(file, to)


def _keep(made: Path, kept: Path) -> None:
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.hardlink_to(made)


def _compile(packages: Path, sources: Collection[str]) -> None:
    """Compile modules below `packages` with as many processes as there are processors."""
    cores = os.cpu_count() or 1
    by_size = sorted(sources, key=lambda source: (packages / source).stat().st_size)
    shares = [share for n in range(cores) if (share := by_size[n::cores])]
    with tempfile.TemporaryDirectory() as folder:
        lists = [Path(folder) / str(n) for n in range(len(shares))]
        for listed, share in zip(lists, shares, strict=True):
            listed.write_text("".join(f"{source}\n" for source in share), encoding="utf-8")
        if lists:
            child.run([base_interpreter(), "-I", "-S", "-c", _SIDE_BY_SIDE, *lists], env=os.environ, cwd=packages)


_SIDE_BY_SIDE = """
import subprocess, sys
compile_all = [sys.executable, "-I", "-S", "-W", "ignore", "-m", "compileall", "-qq"]
compile_all += ["--invalidation-mode", "unchecked-hash", "-i"]
for process in [subprocess.Popen([*compile_all, listed]) for listed in sys.argv[1:]]:
    process.wait()
"""
