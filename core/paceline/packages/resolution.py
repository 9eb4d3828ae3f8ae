"""Exact versions and hashes of everything a release needs, resolved by uv in the index the user has configured."""

from __future__ import annotations

import os
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from paceline import child, refusals
from paceline.errors import InstallError, NoSolutionError
from paceline.packages.depot import PackageFile
from paceline.packages.locked import applies, files_of, joined, pinned_to
from paceline.packages.targets import OLDEST_GLIBC, OLDEST_MACOS
from paceline.packages.uv import base_interpreter, uv_command, uv_environment, way_out
from paceline.store import transaction
from paceline.types import Package

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from paceline.types import Recipe, Requirements

_TOLD = 12
_NO_SOLUTION = 1
"""How uv ends when what the indexes have does not fit together; where one does not answer it ends with 2."""
_ARCH = {"x86_64": "x86_64", "arm64": "aarch64"}


class Resolver:
    """Resolves for one platform and some Pythons. Its cache is its own: see `cache`."""

    def __init__(
        self,
        requires: Requirements,
        pythons: Sequence[str],
        *,
        cache: Path,
        exclude_newer: str | None = None,
        prerelease: bool = False,
        anew: Collection[str] = (),
    ) -> None:
        """`pythons`: ascending, such as ("3.11", "3.12"). The newer ones take the versions of the older where they can.

        `cache`: a folder for what uv learns. It must not be the one that runtimes are installed from, because resolving
        a source distribution anew makes uv forget the wheels that were built of it. `exclude_newer`: an RFC 3339 time;
        files uploaded after it count as absent. `anew`: packages that the index is asked for even where the cache holds
        an answer that counts as fresh, which it does for long when the clock was ahead.
        """
        self.uploaded: dict[str, datetime] = {}
        """By name, when the first file of each package of the last answers was uploaded, as far as the index says."""
        self._pythons = list(pythons)
        self._cache = cache
        self._environment = dict(uv_environment(os.environ, pinned=False))
        # Of no operating system in particular means for this machine.
        self._where = f" on {requires.os} {requires.arch or ''}".rstrip() if requires.os else ""
        self._options = ["--python-platform", _platform(requires, self._environment)] if requires.os else []
        if exclude_newer:
            self._options += ["--exclude-newer", exclude_newer]
        if prerelease:
            self._options += ["--prerelease", "allow"]
        self._options += [f"--refresh-package={name}" for name in anew]

    def packages(
        self, recipe: Recipe, roots: Sequence[str], *, keep: Sequence[Package] = (), prefer: Sequence[Package] = ()
    ) -> tuple[Package, ...]:
        """The closure of `roots`, taken and built as `recipe` says.

        `keep`: packages whose versions stay as they are. `prefer`: packages whose versions are taken where they can be.
        Raises InstallError with uv's reason, NoSolutionError where that is what the indexes have.
        """
        built = {str(canonicalize_name(name)) for name in recipe.config_settings}
        unhashed = {str(canonicalize_name(name)): page for name, page in recipe.unhashed.items()}
        return self._locked(roots, unhashed, built, keep, prefer)

    def build_packages(
        self, roots: Sequence[str], *, keep: Sequence[Package] = (), prefer: Sequence[Package] = ()
    ) -> tuple[Package, ...]:
        """The closure of build requirements, all of them wheels, as `packages`."""
        return self._locked(roots, {}, set(), keep, prefer) if roots else ()

    def files(self, packages: Sequence[Package]) -> dict[str, list[PackageFile]]:
        """By name, the files of locked packages that fit one of the Pythons, by their pinned hashes and sizes.

        A package of which the index has none is absent. Raises InstallError when the index cannot be asked, and
        NoSolutionError where it has no file for a Python at all.
        """
        found: dict[str, list[PackageFile]] = {}
        for python in self._pythons:
            wanted = {p.name: p for p in packages if applies(p, python)}
            roots = [f"{p.name}=={p.version}" for p in wanted.values()]
            for entry in self._compile(roots, (), python, "--no-deps") if roots else ():
                pinned = files_of(wanted[entry["name"]])
                listed = found.setdefault(entry["name"], [])
                for file in _files(entry):
                    if file.sha256 in pinned:
                        right = replace(file, size=pinned[file.sha256] or file.size)
                        listed += [right] if right not in listed else []
        return {name: listed for name, listed in found.items() if listed}

    def _locked(
        self,
        roots: Sequence[str],
        unhashed: Mapping[str, str],
        built: Collection[str],
        keep: Sequence[Package],
        prefer: Sequence[Package],
    ) -> tuple[Package, ...]:
        """One lock for all Pythons, in which they share the versions that each of them can have."""
        locks: dict[str, list[Package]] = {}
        preferred = {p.name: p.version for p in prefer}
        for python in self._pythons:
            pins = [f"{p.name}=={p.version}" for p in keep if applies(p, python)]
            locks[python] = []
            for entry in self._with_wheels(roots, pins, preferred, python, {*unhashed, *built}):
                package = self._package(entry, python, unhashed, built)
                if times := [f["upload-time"] for f in _listed(entry) if "upload-time" in f]:
                    self.uploaded[package.name] = min(times)
                locks[python].append(package)
                preferred[package.name] = package.version
        return joined(locks)

    def _with_wheels(
        self,
        roots: Sequence[str],
        pins: Sequence[str],
        preferred: Mapping[str, str],
        python: str,
        without: Collection[str],
    ) -> list[dict[str, Any]]:
        """As `_compile`, in versions that have wheels for `python`; the packages `without` need none.

        Of a version whose wheels are for other Pythons uv takes the source distribution, if there is one.
        """
        sought: list[str] = []
        while True:
            entries = self._compile(roots, pins, python, *(f"--only-binary={n}" for n in sought), preferred=preferred)
            lacking = {e["name"] for e in entries if not e.get("wheels")}.difference(without, sought)
            if not lacking:
                return entries
            sought += sorted(lacking)

    def _package(
        self, entry: Mapping[str, Any], python: str, unhashed: Mapping[str, str], built: Collection[str]
    ) -> Package:
        name, version = entry["name"], entry["version"]
        if name in unhashed:
            return Package(name, version, index=unhashed[name])
        source = name in built
        files = [entry["sdist"]] if source and "sdist" in entry else [] if source else entry.get("wheels", [])
        sizes = {f["hashes"]["sha256"]: f.get("size") for f in files if "sha256" in f.get("hashes", {})}
        if not sizes:
            kind = "source distribution" if source else f"wheel for Python {python}{self._where or ' here'}"
            raise NoSolutionError(
                f"the package index has no {kind} with a hash for {name} {version}",
                help="choose a version that has one, or another release",
            )
        return pinned_to(Package(name, version, source=source), sizes)

    def _compile(
        self,
        roots: Sequence[str],
        pins: Sequence[str],
        python: str,
        *options: str,
        preferred: Mapping[str, str] = MappingProxyType({}),
    ) -> list[dict[str, Any]]:
        """What uv makes of `roots` in the versions `pins`, and where it can be in those `preferred`, by name."""
        lines: list[str] = []
        with transaction.explained("resolving packages", self._cache, refusals.CACHE):
            self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "roots.in").write_text("\n".join(roots), encoding="utf-8")
            (folder / "pins.txt").write_text("\n".join(pins), encoding="utf-8")
            lock = folder / "pylock.toml"
            if preferred:
                lock.write_text(_as_before(preferred), encoding="utf-8")
            command: list[str | Path] = ["pip", "compile", "roots.in", "--constraints", "pins.txt", "-q", "--no-header"]
            command += ["--python-version", python, "--output-file", "pylock.toml", "--format", "pylock.toml"]
            # Named, because uv would otherwise look through the machine for an interpreter of that version.
            command += ["--python", base_interpreter(), "--no-python-downloads"]
            command += ["--cache-dir", str(self._cache), *self._options, *options]
            called = uv_command(command, self._environment)
            status = child.run(called, env=self._environment, cwd=folder, on_line=lines.append)
            if status:
                said = "".join(lines[-_TOLD:]).strip() or f"uv ended with status {status}"
                kind = NoSolutionError if status == _NO_SOLUTION else InstallError
                raise kind(
                    f"{', '.join(roots)} cannot be resolved for Python {python}{self._where}: {said}",
                    help=way_out(said)
                    or "check the network and the package index that UV_INDEX_URL or PIP_INDEX_URL names",
                )
            return list(tomllib.loads(lock.read_text(encoding="utf-8"))["packages"])


def _listed(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*entry.get("wheels", ()), *([entry["sdist"]] if "sdist" in entry else ())]


def _files(entry: Mapping[str, Any]) -> Iterator[PackageFile]:
    """The files of a package in a pylock.toml: https://packaging.python.org/en/latest/specifications/pylock-toml/"""
    for file in _listed(entry):
        name = unquote(urlsplit(file.get("url") or file.get("path", "")).path).rpartition("/")[2]
        scheme = urlsplit(file.get("url", "")).scheme
        remote, local = scheme in ("http", "https"), scheme == "file"
        if sha256 := file.get("hashes", {}).get("sha256"):
            url, here = file["url"] if remote else None, file["url"] if local else None
            yield PackageFile(name, sha256, file.get("size"), url, here)


def _as_before(versions: Mapping[str, str]) -> str:
    """A lock with `versions`, which uv follows where it finds it in the place of the one that it is to write."""
    lines = ['lock-version = "1.0"', 'created-by = "paceline"']
    for name, version in versions.items():
        lines += ["[[packages]]", f'name = "{name}"', f'version = "{version}"']
    return "\n".join(lines)


def _platform(requires: Requirements, environment: dict[str, str]) -> str:
    """uv's name of the oldest platform that `requires` admits, whose wheels run on every newer one."""
    arch = _ARCH[requires.arch or "x86_64"]
    match requires.os:
        case "linux":
            return f"{arch}-manylinux_{(requires.min_glibc or OLDEST_GLIBC).replace('.', '_')}"
        case "macos":
            environment["MACOSX_DEPLOYMENT_TARGET"] = requires.min_os_version or OLDEST_MACOS
            return f"{arch}-apple-darwin"
        case "windows":
            return f"{arch}-pc-windows-msvc"
        case _:
            raise InstallError(
                "a release that names no operating system cannot be resolved for one", help="name `requires.os`"
            )
