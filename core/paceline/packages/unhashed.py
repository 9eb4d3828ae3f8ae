"""Wheels whose index page publishes no hashes: fetched as all others are, but for what they have to be.

    files/<sha256 of the address>/<file name>    of the depot: where it comes to, with what has come so far
    seen/<sha256 of the address>.json            of the depot: what was there, as long as the server says it still is

So what broke off goes on, and what failed later is not fetched again.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline.errors import DownloadError
from paceline.packages.depot import PackageFile
from paceline.packages.download import validator_of
from paceline.packages.gathering import bring_all, check_room
from paceline.packages.source_archives import admit
from paceline.store import transaction
from paceline.store.digests import sha256_of
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import httpx

    from paceline.packages import download
    from paceline.packages.depot import Depot
    from paceline.packages.heads import Head
    from paceline.packages.indexes import Indexes
    from paceline.packages.pages import Listed
    from paceline.progress import Progress
    from paceline.types import Package


@dataclass
class Wanted:
    """A package, where its wheel is, and what is known of that."""

    package: Package
    listed: Listed
    head: Head | None
    known: PackageFile | None
    """What was there when it was fetched last, and still is."""
    validator: str | None = None
    """Of what comes."""

    @property
    def size(self) -> int | None:
        """Bytes, as far as page or server say."""
        return self.listed.size or (self.head.size if self.head is not None else None)

    @property
    def pending(self) -> PackageFile:
        return PackageFile(self.listed.name, _address(self.listed.url), self.size, self.listed.url)


def locate(packages: Iterable[Package], indexes: Indexes, depot: Depot) -> list[Wanted]:
    """Where the wheels of `packages` are, each on the index page of its own.

    Raises DownloadError that names the page, and OfflineError.
    """
    return [_located(package, indexes, depot) for package in packages]


def sizes(wanted: Iterable[Wanted]) -> dict[str, int]:
    """By name, the bytes of those whose page or server says them."""
    return {each.package.name: each.size for each in wanted if each.size is not None}


def bring(wanted: Sequence[Wanted], indexes: Indexes, depot: Depot, progress: Progress) -> dict[str, PackageFile]:
    """By name, what each of `wanted` is; what was not known before is in `depot` now.

    Raises DownloadError that names the page, InstallError when the disk has no room, OfflineError, and what `progress`
    raises.
    """
    with depot.held(progress):
        missing = [each for each in wanted if each.known is None]
        if pending := [each.pending for each in missing]:
            check_room(pending, depot)
            bring_all(pending, depot, _AsItIs(indexes, missing), progress)
        return {each.package.name: each.known or _settle(each, depot) for each in wanted}


class _AsItIs:
    """Supplies pending files, whatever they turn out to be."""

    def __init__(self, indexes: Indexes, wanted: Sequence[Wanted]) -> None:
        self._indexes = indexes
        self._wanted = {_address(each.listed.url): each for each in wanted}

    def files(self, packages: Sequence[Package]) -> Mapping[str, Sequence[PackageFile]]:
        return {}

    def bring(self, file: PackageFile, target: Path, progress: download.Progress) -> None:
        wanted = self._wanted[file.sha256]
        listed = wanted.listed
        if listed.sha256 is None and target.exists():  # whole, and the process ended before it had its place
            return

        def answered(response: httpx.Response) -> None:
            wanted.validator = validator_of(response)

        try:
            self._indexes.fetch(
                listed.url, target, sha256=listed.sha256, size=listed.size, progress=progress, answered=answered
            )
            admit(target)
        except DownloadError as error:
            raise _failed(wanted.package, error) from None


def _located(package: Package, indexes: Indexes, depot: Depot) -> Wanted:
    try:
        listed = indexes.on_its_page(package)
    except DownloadError as error:
        raise _failed(package, error) from None
    head = indexes.head(listed.url)
    return Wanted(package, listed, head, _seen(listed, head, depot))


def _settle(wanted: Wanted, depot: Depot) -> PackageFile:
    """Give what has come the place that its hash has in the depot."""
    pending = depot.path(wanted.pending)
    file = PackageFile(wanted.listed.name, sha256_of(pending), pending.stat().st_size)
    seen = {"sha256": file.sha256, "size": file.size, "validator": wanted.validator}
    transaction.write_json(_note(wanted.listed, depot), seen)
    place = depot.path(file)
    transaction.make_folder(place.parent)
    transaction.settle(pending, place)
    transaction.discard(pending.parent)
    return file


def _seen(listed: Listed, head: Head | None, depot: Depot) -> PackageFile | None:
    """What was fetched of this address before, when the server says that it is the same still."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        seen = read_object(_note(listed, depot))
        file = PackageFile(listed.name, seen["sha256"], seen["size"])
        same = head is not None and head.validator is not None and head.validator == seen["validator"]
        if same and head is not None and head.size in (None, file.size) and listed.sha256 in (None, file.sha256):
            return file
    return None


def _note(listed: Listed, depot: Depot) -> Path:
    return depot.folder / "seen" / f"{_address(listed.url)}.json"


def _address(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _failed(package: Package, error: DownloadError) -> DownloadError:
    said = f"{package.name} {package.version} cannot be fetched from {package.index}: {error.message}"
    return DownloadError(said, help=error.help, status=error.status)
