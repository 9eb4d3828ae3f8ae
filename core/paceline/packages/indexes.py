"""The files of locked packages, from the package indexes that the user has configured and from pages of their own."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from paceline import network
from paceline.errors import DownloadError, InstallError, OfflineError
from paceline.packages import pages, python_versions, targets
from paceline.packages.credentials import Credentials
from paceline.packages.depot import PackageFile
from paceline.packages.download import Digest, download
from paceline.packages.heads import Head, head_of
from paceline.packages.locked import files_of
from paceline.packages.resolution import Resolver
from paceline.packages.source_archives import admit
from paceline.packages.uv import uv_environment
from paceline.store import transaction
from paceline.store.digests import sha256_of
from paceline.types import Requirements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from paceline.packages.download import Patience, Progress
    from paceline.types import Package


class Indexes:
    """The package indexes that the user has configured for uv or pip: uv says where files are, we fetch them.

    A page of a package's own is read here, because uv finds nothing on a page without hashes but by fetching it.
    """

    def __init__(
        self,
        cache: Path,
        requires: Requirements | None = None,
        python: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        """`requires`, `python`: fetch for such a platform and this Python ("3.12") instead of this machine's."""
        pythons = [python or python_versions.here()]
        self._resolver = Resolver(requires or Requirements(), pythons, cache=cache / "resolution")
        self._elsewhere = (requires, python) if requires is not None and python is not None else None
        self._options = {"patience": patience} if patience is not None else {}
        self._clients: network.Clients | None = None
        self._lock = threading.Lock()

    def files(self, packages: Sequence[Package]) -> Mapping[str, Sequence[PackageFile]]:
        try:
            own = {p.name: [file] for p in packages if (file := self._pinned_on_its_page(p)) is not None}
            return self.locate([p for p in packages if p.name not in own]) | own
        except (InstallError, OfflineError):  # uv, which is asked again to install them, says what is wrong
            return {}

    def locate(self, packages: Sequence[Package]) -> dict[str, list[PackageFile]]:
        """As `files`, of the configured indexes; raises InstallError with uv's reason when one cannot be asked or lacks
        something."""
        return self._resolver.files(packages)

    def on_its_page(self, package: Package) -> pages.Listed:
        """The wheel of `package` that fits on the index page of its own; what that does not say, the pin may.

        Raises DownloadError, OfflineError.
        """
        assert package.index is not None
        base = [pages.address(package.index, package.name)]
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "index.html"
            self.fetch(
                base[0],
                page,
                limit=pages.MOST_BYTES,
                accept=pages.ACCEPT,
                answered=lambda response: base.append(str(response.url)),
            )
            try:
                listed = pages.parse(page.read_text(encoding="utf-8", errors="replace"), base[-1])
            except ValueError as error:
                raise DownloadError(f"{base[0]} cannot be read: {error}") from None
        target = targets.oldest(*self._elsewhere) if self._elsewhere else targets.here()
        found = pages.best(listed, package, target)
        if found is None:
            raise DownloadError(
                f"{base[0]} has no wheel of {package.name} {package.version} for {target.name}",
                help="choose another release: `paceline runtime get --list` shows them all",
            )
        pinned = files_of(package)
        sha256 = found.sha256 or (package.sha256[0] if len(pinned) == 1 else None)
        return replace(found, sha256=sha256, size=pinned.get(sha256 or "") or found.size)

    def head(self, url: str) -> Head | None:
        """What the server says of a file that it would send; None where it says nothing. Of files here, their size."""
        here = _path_in(url)
        if here is None:
            return head_of(url, self._connections())
        return Head(here.stat().st_size, None) if here.is_file() else None

    def fetch(self, url: str, target: Path, **options: Any) -> Digest:
        """Put what is at `url` there, as `download` does with these `options`."""
        here = _path_in(url)
        if here is not None:
            return _copy(here / "index.html" if here.is_dir() else here, target, options.get("sha256"))
        return download(url, target, clients=self._connections(), **{**self._options, **options})

    def bring(self, file: PackageFile, target: Path, progress: Progress) -> None:
        assert file.url is not None
        self.fetch(file.url, target, sha256=file.sha256, size=file.size, progress=progress)
        admit(target)

    def close(self) -> None:
        """End the connections over which files came."""
        if self._clients is not None:
            self._clients.close()

    def _connections(self) -> network.Clients:
        with self._lock:
            if self._clients is None:
                self._clients = network.Clients(auth=Credentials(uv_environment(os.environ)))
            return self._clients

    def _pinned_on_its_page(self, package: Package) -> PackageFile | None:
        """A pinned package's file on the index page of its own, where it is known which of its hashes that has."""
        if package.index is None or not package.sha256:
            return None
        file = self.on_its_page(package)
        if file.sha256 is None or file.sha256 not in package.sha256:
            return None
        return PackageFile(file.name, file.sha256, file.size, file.url)


def _path_in(url: str) -> Path | None:
    """The file or folder of this machine that an address names; None for one of a server."""
    parts = urlsplit(url)
    return Path(re.sub(r"^/([A-Za-z]:)", r"\1", unquote(parts.path))) if parts.scheme == "file" else None


def _copy(file: Path, target: Path, sha256: str | None) -> Digest:
    transaction.make_folder(target.parent)
    draft = target.with_name(f".{target.name}.draft")
    try:
        transaction.step("copy", draft)
        shutil.copyfile(file, draft)
        found = Digest(sha256_of(draft), draft.stat().st_size)
        if sha256 not in (None, found.sha256):
            raise DownloadError(f"{file} has the sha256 {found.sha256}, not {sha256}")
        transaction.settle(draft, target)
    except FileNotFoundError:
        raise DownloadError(f"{file} does not exist") from None
    finally:
        transaction.discard(draft)
    return found
