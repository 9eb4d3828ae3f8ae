"""A bundle: releases with every file that installing them takes, in one file, for machines without a network.

It is a zip archive of uncompressed entries, the same bytes for the same content:

    paceline-bundle.json       format, Pythons, releases as in registry.json, each file's hash and size, and which files
                               are of packages that no index publishes hashes of
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
import tempfile
import zipfile
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from paceline import network, refusals
from paceline.errors import ArchiveError, NotFoundError, StoreError, UsageError
from paceline.manager import bundle_files
from paceline.packages import first_use, pages, targets
from paceline.packages.archives import wrong_name
from paceline.packages.depot import BUNDLES, Depot, PackageFile
from paceline.packages.gathering import bring_all, check_room
from paceline.packages.indexes import Indexes
from paceline.packages.pages import Listed
from paceline.packages.source_archives import admit
from paceline.registry import registry_value
from paceline.registry.reading import parse_registry_value
from paceline.store import transaction
from paceline.types import Package
from paceline.untrusted_json import parse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from paceline.packages.download import Progress as FileProgress
    from paceline.progress import Progress
    from paceline.store import Store
    from paceline.types import Release

    Identity = tuple[str, str, str | None]

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
    _unhashed: Mapping[Identity, frozenset[str]] = field(repr=False)
    """By what identifies a package that no index publishes a hash of, the sha256 of its wheels for each Python."""

    def files(self, packages: Sequence[Package]) -> dict[str, list[PackageFile]]:
        """By name, the files of packages, as an installation wants them (see `gathering.Supply`)."""
        found = {p.name: [f for f in self.listed if f.sha256 in p.sha256] for p in packages}
        return {name: files for name, files in found.items() if files}

    def unhashed(self, packages: Sequence[Package]) -> dict[str, PackageFile]:
        """As `gathering.Carrier` says. Raises ArchiveError."""
        found = {}
        for package in packages:
            hashes = self._unhashed.get(identity(package), frozenset())
            if package.sha256 and not hashes:  # whoever published the release knows what it is
                continue
            files = {f.sha256: f for f in self.listed if f.sha256 in hashes}
            best = pages.best([Listed(f.name, "", f.sha256, f.size) for f in files.values()], package, targets.here())
            named = f"{package.name} {package.version}"
            if best is None or best.sha256 is None:
                raise _refused(self.path, f"it has no wheel of {named} for this Python and machine")
            if package.sha256 and best.sha256 not in package.sha256:
                wanted = ", ".join(package.sha256)
                raise ArchiveError(f"{self.path} has another {named}: its sha256 is {best.sha256}, not {wanted}")
            found[package.name] = files[best.sha256]
        return found

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
    store: Store,
    wheels: Mapping[str, Path] = MappingProxyType({}),
    accepted: Collection[str] = (),
) -> Bundle:
    """Write a bundle of `releases` for runtimes built on `pythons` ("3.12"), for whatever platforms they are.

    `wheels`: by sha256, files that are here and in no index (see `local_packages.carried`). `accepted`: the ids of
    releases that may bring packages without hashes. What those are is recorded in `store`, and required the next time.
    Raises, before anything is fetched, UsageError and StoreError when `path` cannot be written; UnpinnedError for
    others, InstallError when there is no file for one of the Pythons, OfflineError, DownloadError, StoreError and
    OSError. What was fetched stays under `cache` until the bundle is written.
    """
    network.require_online(f"{path.name} was not made")
    _check_target(path)
    files: dict[str, PackageFile] = {}
    unhashed: dict[Identity, frozenset[str]] = {}
    first: list[tuple[list[Package], str]] = []
    for release in releases:
        for python in pythons:
            found = bundle_files.find(
                release, python, store.home, cache, progress, wheels=wheels, allow_unpinned=release.id in accepted
            )
            files |= {file.sha256: file for file in found.files}
            for package in found.unhashed:
                key = identity(package)
                unhashed[key] = unhashed.get(key, frozenset()) | set(package.sha256)
            first.append((found.unhashed, found.place))
    if unhashed:
        with store.installing(progress), transaction.explained("recording what was fetched", store.home):
            for packages, place in first:
                first_use.record(store.home, packages, place)
    listed = sorted(files.values(), key=lambda file: (file.name, file.sha256))
    fetched = [file for file in listed if file.sha256 not in wheels]
    depot = Depot(cache / BUNDLES)
    with depot.held(progress):
        check_room(fetched, depot)
        with closing(Indexes(cache)) as indexes:
            bring_all(fetched, depot, indexes, progress)
        here = [(file, wheels.get(file.sha256) or depot.path(file)) for file in listed]
        with _written(path):
            _write(path, _contents(releases, pythons, here, unhashed), here)
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
            unhashed = {identity(p): frozenset(p.sha256) for p in map(_unhashed, value.get("unhashed", ()))}
            registry = value["registry"]
        except (ValueError, KeyError, TypeError) as error:
            raise _refused(path, f"its {CONTENTS} is wrong: {error}") from None
    sizes = {name: entry.file_size for name, entry in by_name.items()}
    if sizes != {_name(file): file.size for file in files} or len({f.sha256 for f in files}) != len(files):
        raise _refused(path, f"it has other files than its {CONTENTS} lists")
    releases = parse_registry_value(registry, f"the registry in {path}", way_out=_AGAIN, remote=True)
    return Bundle(path, pythons, releases, files, {file.sha256: _name(file) for file in files}, unhashed)


def identity(package: Package) -> Identity:
    """What tells a package from those of other index pages, which call different files by one name."""
    return package.name, package.version, package.index


def _check_target(path: Path) -> None:
    with _written(path):
        if path.is_dir():
            raise UsageError(f"{path} is a folder", help=f"give the file to write, such as {path / 'paceline.bundle'}")
        with tempfile.TemporaryFile(dir=transaction.make_folder(path.absolute().parent)):
            pass


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Say of an OSError that it kept a bundle from being written to `path`."""
    try:
        yield
    except OSError as error:
        folder = path.absolute().parent
        mend = refusals.how_to_mend(error, folder) or f"see that {folder} is a folder where files can be made"
        raise StoreError(
            f"writing the bundle {path} failed at {error.filename or folder}: {error.strerror or error}",
            help=f"{mend}; or write it elsewhere",
        ) from error


def _write(path: Path, contents: str, listed: Sequence[tuple[PackageFile, Path]]) -> None:
    """Make the archive beside `path`, read it back, and give it its name."""
    transaction.make_folder(path.absolute().parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        transaction.step("write", draft)
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, strict_timestamps=True) as archive:
            archive.writestr(_entry(CONTENTS), contents)
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


def _contents(
    releases: Sequence[Release],
    pythons: Sequence[str],
    files: Sequence[tuple[PackageFile, Path]],
    unhashed: Mapping[Identity, frozenset[str]],
) -> str:
    value: dict[str, Any] = {
        "format": FORMAT,
        "pythons": sorted(pythons),
        "registry": registry_value(sorted(releases, key=lambda release: release.id)),
        "files": [{"name": f.name, "sha256": f.sha256, "size": path.stat().st_size} for f, path in files],
    }
    if unhashed:
        value["unhashed"] = [
            {"name": name, "version": version, "index": index, "sha256": sorted(unhashed[name, version, index])}
            for name, version, index in sorted(unhashed, key=str)
        ]
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


def _unhashed(item: Any) -> Package:
    hashes = tuple(item["sha256"])
    if not all(isinstance(text, str) for text in (item["name"], item["version"], item["index"], *hashes)):
        raise ValueError(f"{item!r} is no package")
    return Package(item["name"], item["version"], hashes, index=item["index"])


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
