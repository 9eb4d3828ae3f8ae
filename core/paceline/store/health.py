"""Whether an installed runtime is still what its installation left.

The quick check opens two small files and asks for the size of the interpreter and of the shared libraries; a check of
all sizes asks for those of every file; the full check reads every file and compares its hash. Each tells a damaged
runtime from one whose surroundings changed: a base Python that is gone or is another one, an older C library, a lesser
processor.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from stat import S_ISLNK
from typing import TYPE_CHECKING, Any

from paceline import processor
from paceline.store.manifest import FILES, MANIFEST, python_of, read_runtime
from paceline.untrusted_json import read_object
from paceline.versions import numbers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from paceline.store.digests import Digests


class State(StrEnum):
    INSTALLED = "installed"
    BROKEN = "broken"
    """It has its manifest, but something of it, or below it, is missing or changed."""
    INCOMPLETE = "incomplete"
    """No readable manifest: it does not count as installed."""


@dataclass(frozen=True)
class Health:
    """A runtime's state, and in sentences what is wrong with it."""

    state: State
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.state is State.INSTALLED


def glance(folder: Path) -> Health:
    """Check only that the manifest, the interpreter and what the runtime stands on are there, for lists."""
    return _check(folder, lambda folder, manifest: ())


def quick(folder: Path) -> Health:
    """Check the runtime in `folder` by what can be seen without reading its files."""
    return _check(folder, _quick_files)


def sizes(folder: Path) -> Health:
    """Check that the runtime in `folder` has every file, with its size, and read none but their list."""
    return _check(folder, _all_sizes)


def full(folder: Path) -> Health:
    """Check every file of the runtime in `folder` by its hash, and that its Python starts."""
    return _check(folder, _all_files)


def describe_files(folder: Path, digests: Digests | None = None) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every regular file, and the target of every link, by path below `folder`.

    What `digests` knows is not read again.
    """
    from paceline.store.digests import Digests, files_below

    root, found = os.fspath(folder), files_below(folder)
    paths = {name: f"{root}/{name}" for name in found}
    regular = {paths[name]: status for name, status in found.items() if not S_ISLNK(status.st_mode)}
    hashed = (digests or Digests()).of(regular)
    return {
        name: {"size": status.st_size, "sha256": hashed[paths[name]]}
        if paths[name] in hashed
        else {"link": os.readlink(paths[name])}  # noqa: PTH115 - the path is text
        for name, status in found.items()
    }


def quick_part(files: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Of all files, those whose sizes the quick check looks at, for the manifest: programs and shared libraries."""
    return {name: int(entry["size"]) for name, entry in files.items() if "size" in entry and _NATIVE.search(name)}


def base_python(executable: str) -> dict[str, str]:
    """What the manifest records of the Python that a runtime is built on."""
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "base": executable,
        "real": os.path.realpath(executable),
    }


def libc() -> str | None:
    """The C library of this machine, `glibc 2.36`; None where it does not say."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") if sys.platform == "linux" else None
    except (ValueError, OSError):
        return None


_NATIVE = re.compile(r"\.(so|dylib|dll|pyd|exe|metallib)($|\.\d)|^env/pyvenv\.cfg$")
_TOLD = 5


def _check(folder: Path, files: Callable[[Path, Mapping[str, Any]], Iterable[str]]) -> Health:
    runtime = read_runtime(folder)
    if runtime is None:
        return Health(State.INCOMPLETE, (_why_incomplete(folder),))
    try:
        manifest = read_object(folder / MANIFEST)
        if runtime.linked is not None:
            problems = _link(runtime.linked, runtime.python, manifest)
            problems += _starts(runtime.python, manifest) if files is _all_files and not problems else []
        else:
            problems = [*_surroundings(folder, manifest), *files(folder, manifest)]
    except OSError as error:
        problems = [f"{error.filename or 'something of it'} cannot be read: {error.strerror or error}"]
    except ValueError as error:
        problems = [f"its records cannot be read: {error}"]
    except (KeyError, TypeError, AttributeError) as error:
        problems = [f"its records are damaged: {type(error).__name__}: {error}"]
    told = problems[:_TOLD] + ([f"and {len(problems) - _TOLD} more"] if len(problems) > _TOLD else [])
    return Health(State.BROKEN if problems else State.INSTALLED, tuple(told))


def _why_incomplete(folder: Path) -> str:
    manifest = folder / MANIFEST
    try:
        version = read_object(manifest).get("schema_version")
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"{manifest} cannot be read: {error.strerror}"
    except ValueError:
        return f"{MANIFEST} is damaged"
    return f"{MANIFEST} is of another runtime, or of another Paceline (schema_version {version!r})"


def _surroundings(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What changed around the runtime since it was installed."""
    problems = []
    python = python_of(folder / "env")
    if not python.exists():
        target = python.readlink() if python.is_symlink() else None
        problems.append(
            f"the Python it was built on is gone: {target}" if target else f"its Python {python} is missing"
        )
    else:
        problems += _other_python(python, manifest)
    had, has = manifest.get("libc"), libc()
    if had and not has:
        problems.append(f"it was installed on {had}, and this system has another C library")
    elif had and has and numbers(has.split()[-1]) < numbers(str(had).split()[-1]):
        problems.append(f"it was installed on {had}, and this system has {has}")
    needed = manifest.get("needs_cpu") or ()
    here = processor.features() if needed else None  # to ask takes milliseconds where there are many cores
    if here is not None and (lacking := [f for f in needed if f not in here]):
        problems.append(f"it was built for a processor with {', '.join(lacking)}, which this one lacks")
    return problems


def _other_python(python: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Whether the interpreter leads to one whose very name says that it is of another version."""
    built = ".".join(str(manifest.get("python", {}).get("version", "")).split(".")[:2])
    name = re.search(r"python(\d+\.\d+)", Path(os.path.realpath(python)).name)
    if built and name is not None and name[1] != built:
        return [f"it was built on Python {built}, and {python} is Python {name[1]} now"]
    return []


def _link(target: Path, python: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with the environment that a link leads to. Its files are its owner's and not looked at."""
    if not target.exists():
        return [f"what it is linked to is gone: {target}"]
    if not python.exists():
        gone = f"{python}, a link to {python.readlink()}" if python.is_symlink() else str(python)
        return [f"the interpreter of what it is linked to is gone: {gone}"]
    return _other_python(python, manifest)


def _quick_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    expected = manifest.get("quick_check")
    if expected is None:  # a runtime installed by an older Paceline
        expected = quick_part(read_object(folder / FILES))
    root, problems = os.fspath(folder), []
    for name, size in expected.items():
        try:
            found = os.stat(f"{root}/{name}").st_size  # noqa: PTH116 - hundreds of files, and Path costs more than stat
        except OSError as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        if found != size:
            problems.append(f"{name} has {found} bytes instead of {size}")
    if not (folder / FILES).exists():
        problems.append(f"{FILES} is missing")
    return problems


def _all_sizes(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    from paceline.store.digests import files_below

    root, expected = os.fspath(folder), _listed_files(folder, manifest)
    if expected is None:
        return [f"{FILES} was changed"]
    found = {
        name: {"link": os.readlink(f"{root}/{name}")} if S_ISLNK(status.st_mode) else {"size": status.st_size}  # noqa: PTH115
        for name, status in files_below(folder).items()
    }
    return _lacking({name: {k: entry[k] for k in entry if k != "sha256"} for name, entry in expected.items()}, found)


def _all_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    expected = _listed_files(folder, manifest)
    if expected is None:
        return [f"{FILES} was changed"]
    found = describe_files(folder)
    # Byte code that somebody's run of the interpreter wrote harms nothing.
    own = {FILES, MANIFEST}
    strange = [
        f"{name} does not belong to it"
        for name in found.keys() - expected.keys() - own
        if "__pycache__" not in PurePosixPath(name).parts
    ]
    return [*_lacking(expected, found), *strange] or _starts(python_of(folder / "env"), manifest)


def _listed_files(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The list of files; None when it is not the one that the manifest has the hash of."""
    from paceline.store.digests import sha256_of

    return read_object(folder / FILES) if sha256_of(folder / FILES) == manifest["files_sha256"] else None


def _lacking(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Which of the expected files are missing, or other ones."""
    problems = []
    for name, entry in expected.items():
        if name not in found:
            problems.append(f"{name} is missing")
        elif found[name] != entry:
            problems.append(f"{name} {_difference(entry, found[name])}")
    return problems


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if "link" in expected or "link" in found:
        return "leads elsewhere" if "link" in expected and "link" in found else "is of another kind"
    if expected["size"] != found["size"]:
        return f"has {found['size']} bytes instead of {expected['size']}"
    return "was changed"


def _starts(python: Path, manifest: Mapping[str, Any]) -> list[str]:
    import subprocess

    built = str(manifest.get("python", {}).get("version", ""))
    code = "import sys; print('.'.join(map(str, sys.version_info[:3])))"
    try:
        argv = [str(python), "-I", "-S", "-B", "-c", code]
        done = subprocess.run(
            argv, capture_output=True, encoding="utf-8", errors="replace", timeout=60, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"its Python does not start: {error}"]
    if done.returncode:
        return [f"its Python does not start: {done.stderr.strip()[-200:] or f'exit status {done.returncode}'}"]
    now = done.stdout.strip()
    if built and now.split(".")[:2] != built.split(".")[:2]:
        return [f"it was built on Python {built}, and its base is Python {now} now"]
    return []
