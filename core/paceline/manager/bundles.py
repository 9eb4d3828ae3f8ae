"""A bundle: releases with every file that installing them takes, in one file, for machines without a network.

It is a zip archive of uncompressed entries, the same bytes for the same content:

    paceline-bundle.json       format, Pythons, releases as in registry.json, each file's hash and size
    files/<sha256>/<name>      wheels and source distributions

Nothing is ever unpacked by a name that the archive gives: entries must be exactly those that the first one lists.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
import zipfile
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from packaging.tags import compatible_tags, cpython_tags, platform_tags

from paceline import network
from paceline.errors import ArchiveError, InstallError, NotFoundError
from paceline.packages.archives import wrong_name
from paceline.packages.depot import BUNDLES, Depot, PackageFile
from paceline.packages.gathering import bring_all, check_room
from paceline.packages.indexes import Indexes
from paceline.packages.locked import applies
from paceline.packages.source_archives import admit
from paceline.packages.wheels import read_wheel
from paceline.registry import registry_value
from paceline.registry.reading import parse_registry_value
from paceline.store import transaction
from paceline.untrusted_json import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from paceline.packages.download import Progress as FileProgress
    from paceline.progress import Progress
    from paceline.types import Package, Release

FORMAT = 1
CONTENTS = "paceline-bundle.json"
_MOST_CONTENTS = 32 * 2**20
_CHUNK = 1 << 20
_AGAIN = "copy it again, or make it anew with `paceline bundle create`"


@dataclass(frozen=True)
class Bundle:
    """What a bundle says that it holds."""

    path: Path
    pythons: tuple[str, ...]
    """Versions such as `3.12`."""
    releases: tuple[Release, ...]
    listed: tuple[PackageFile, ...]
    _entries: Mapping[str, str] = field(repr=False)
    """The archive's entry of each file, by sha256."""

    def files(self, packages: Sequence[Package]) -> dict[str, list[PackageFile]]:
        """By name, the files of packages, as an installation wants them (see `gathering.Supply`)."""
        found = {p.name: [f for f in self.listed if f.sha256 in p.sha256] for p in packages}
        return {name: files for name, files in found.items() if files}

    def check(self) -> None:
        """Read every file and compare its hash. Raises ArchiveError."""
        with _opened(self.path) as archive:
            for file in self.listed:
                digest = hashlib.sha256()
                with archive.open(self._entries[file.sha256]) as content:
                    while part := content.read(_CHUNK):
                        digest.update(part)
                if digest.hexdigest() != file.sha256:
                    raise _refused(self.path, f"{file.name} in it is not what it should be")

    def bring(self, file: PackageFile, target: Path, progress: FileProgress) -> None:
        """Copy one file out, hashing it on the way. Raises ArchiveError."""
        transaction.make_folder(target.parent)
        draft, digest, done = target.with_name(f".{target.name}.draft"), hashlib.sha256(), 0
        try:
            transaction.step("write", draft)
            entry = self._entries[file.sha256]
            with _opened(self.path) as archive, archive.open(entry) as content, draft.open("wb") as copy:
                while part := content.read(_CHUNK):
                    copy.write(part)
                    digest.update(part)
                    done += len(part)
                    progress(done, file.size)
            if digest.hexdigest() != file.sha256:
                raise _refused(self.path, f"{file.name} in it is not what it should be")
            transaction.settle(draft, target)
        finally:
            transaction.discard(draft)
        admit(target)


def create(
    releases: Sequence[Release],
    path: Path,
    pythons: Sequence[str],
    cache: Path,
    progress: Progress,
    *,
    wheels: Mapping[str, Path] = MappingProxyType({}),
) -> Bundle:
    """Write a bundle of `releases` for runtimes built on `pythons` ("3.12"), for whatever platforms they are.

    `wheels`: by sha256, files that are here and in no index (see `local_packages.carried`). Raises InstallError when a
    package has no hash or no file for one of the Pythons, OfflineError, DownloadError and OSError. What was fetched
    stays under `cache` until the bundle is written.
    """
    network.require_online(f"{path.name} was not made")
    files: dict[str, PackageFile] = {}
    for release in releases:
        for python in pythons:
            files |= {file.sha256: file for file in _files(release, python, cache, wheels)}
    listed = sorted(files.values(), key=lambda file: (file.name, file.sha256))
    fetched = [file for file in listed if file.sha256 not in wheels]
    depot = Depot(cache / BUNDLES)
    with depot.held(progress):
        check_room(fetched, depot)
        with closing(Indexes(cache)) as indexes:
            bring_all(fetched, depot, indexes, progress)
        _write(releases, path, pythons, [(file, wheels.get(file.sha256) or depot.path(file)) for file in listed])
        depot.drop(fetched)
    return read_bundle(path)


def read_bundle(path: Path) -> Bundle:
    """What `path` holds; its structure is checked, its files are not read.

    Raises ArchiveError when it is no bundle, is damaged, or has anything that a bundle does not have; RegistryError
    when its releases cannot be read.
    """
    with _opened(path) as archive:
        entries = archive.infolist()
        by_name = {entry.filename: entry for entry in entries}
        if len(by_name) != len(entries):
            raise _refused(path, "it has two entries of one name")
        for entry in entries:
            if problem := _wrong(entry):
                raise _refused(path, f"its entry {entry.filename!r} {problem}")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise _refused(path, "its entries lie over one another")
        contents = by_name.pop(CONTENTS, None)
        if contents is None or contents.file_size > _MOST_CONTENTS:
            raise _refused(path, f"it has no {CONTENTS} that could be read")
        try:
            value = parse(archive.read(contents))
            found = value["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise _refused(path, f"its {CONTENTS} cannot be read: {error}") from None
        if found != FORMAT:
            raise ArchiveError(f"{path} has format {found!r}; this Paceline reads {FORMAT}", help="update Paceline")
        try:
            pythons = tuple(text for text in map(str, value["pythons"]) if re.fullmatch(r"3\.\d+", text))
            files = tuple(_file(item) for item in value["files"])
            registry = value["registry"]
        except (ValueError, KeyError, TypeError) as error:
            raise _refused(path, f"its {CONTENTS} is wrong: {error}") from None
    sizes = {name: entry.file_size for name, entry in by_name.items()}
    if sizes != {_name(file): file.size for file in files} or len({f.sha256 for f in files}) != len(files):
        raise _refused(path, f"it has other files than its {CONTENTS} lists")
    releases = parse_registry_value(registry, f"the registry in {path}", way_out=_AGAIN, remote=True)
    return Bundle(path, pythons, releases, files, {file.sha256: _name(file) for file in files})


def _write(
    releases: Sequence[Release], path: Path, pythons: Sequence[str], listed: Sequence[tuple[PackageFile, Path]]
) -> None:
    """Make the archive beside `path`, read it back, and give it its name."""
    transaction.make_folder(path.absolute().parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        transaction.step("write", draft)
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, strict_timestamps=True) as archive:
            archive.writestr(_entry(CONTENTS), _contents(releases, pythons, listed))
            for file, here in listed:
                with here.open("rb") as content:
                    entry = _entry(_name(file))
                    entry.file_size = here.stat().st_size
                    with archive.open(entry, "w") as copy:
                        while part := content.read(_CHUNK):
                            copy.write(part)
        bundle = read_bundle(draft)
        bundle.check()
        transaction.settle(draft, path)
    finally:
        transaction.discard(draft)


def _files(release: Release, python: str, cache: Path, wheels: Mapping[str, Path]) -> list[PackageFile]:
    """Every file that installing `release` on Python `python` takes, by the versions and hashes of its lock."""
    recipe = release.recipe
    if recipe.unpinned or any(p.file for p in recipe.packages):
        names = ", ".join(p.name for p in recipe.packages if p.file or not p.sha256)
        raise InstallError(
            f"{release.id} cannot be bundled: nothing published says which files of {names} are the right ones",
            help="choose a release whose packages are all pinned by hash",
        )
    built = any(p.source for p in recipe.packages)
    files: list[PackageFile] = []
    for packages in (recipe.packages, recipe.build_packages if built else ()):
        here = [digest for p in packages for digest in p.sha256 if digest in wheels]
        files += [_wheel_here(wheels[digest], digest, release, python) for digest in here]
        wanted = [p for p in packages if applies(p, python) and not wheels.keys() & set(p.sha256)]
        found = Indexes(cache, release.requires, [python]).locate(wanted)
        for package in wanted:
            fetched = [f for f in found.get(package.name, ()) if f.url is not None]
            if not fetched:
                raise InstallError(
                    f"the package index has no file of {package.name} {package.version} for Python {python} on "
                    f"{release.platform} that {release.id} is locked to",
                    help="choose other Pythons with --python, or check the index that UV_DEFAULT_INDEX names",
                )
            files += fetched
    return files


def _wheel_here(path: Path, sha256: str, release: Release, python: str) -> PackageFile:
    """A wheel that is here and in no index. Raises InstallError when it is another one or not for Python `python`."""
    wheel = read_wheel(path)
    if wheel.sha256 != sha256:
        raise InstallError(
            f"{release.id} cannot be bundled: {path} is not the file that it was made with",
            help="make the runtime anew: `paceline runtime get PATH` with the wheel it was made with",
        )
    version = (3, int(python.partition(".")[2]))
    machine = list(platform_tags())
    fitting = {*cpython_tags(version, platforms=machine), *compatible_tags(version, platforms=machine)}
    if wheel.tags.isdisjoint(fitting):
        raise InstallError(
            f"{release.id} cannot be bundled for Python {python}: its {path.name} is for another one",
            help="choose the wheel's own Python with --python, or install one that is built for that Python",
        )
    return PackageFile(path.name, wheel.sha256, path.stat().st_size)


def _contents(releases: Sequence[Release], pythons: Sequence[str], files: Sequence[tuple[PackageFile, Path]]) -> str:
    value: dict[str, Any] = {
        "format": FORMAT,
        "pythons": sorted(pythons),
        "registry": registry_value(sorted(releases, key=lambda release: release.id)),
        "files": [{"name": f.name, "sha256": f.sha256, "size": path.stat().st_size} for f, path in files],
    }
    return json.dumps(value, indent=1) + "\n"


def _file(item: Any) -> PackageFile:
    name, sha256, size = item["name"], item["sha256"], item["size"]
    if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"{sha256!r} is no sha256")
    if not isinstance(size, int) or not isinstance(name, str) or "/" in name or wrong_name(name):
        raise ValueError(f"{name!r} is no file name")
    file = PackageFile(name, sha256, size, url=f"bundle:{sha256}")
    _ = file.project  # raises for what is named like no package
    return file


def _name(file: PackageFile) -> str:
    return f"files/{file.sha256}/{file.name}"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


def _wrong(entry: zipfile.ZipInfo) -> str | None:
    mode = entry.external_attr >> 16
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        return "is compressed or encrypted, which a bundle's entries are not"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or mode & 0o7000:
        return "is no ordinary file"
    return wrong_name(entry.orig_filename)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """A bundle's archive; what is found wrong with it on the way becomes an ArchiveError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist", help="give the path of a bundle") from None
    except IsADirectoryError:
        raise _refused(path, "it is a folder") from None
    except (zipfile.BadZipFile, EOFError, KeyError, NotImplementedError, RuntimeError, struct.error) as error:
        raise _refused(path, f"it is no bundle, or a damaged one: {error}") from None


def _refused(path: Path, problem: str) -> ArchiveError:
    return ArchiveError(f"{path} cannot be used: {problem}", help=_AGAIN)
