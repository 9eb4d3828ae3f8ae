"""Files of packages that were fetched and that uv still needs, as a package index on this disk:

    files/<sha256>/<file name>         a file, whole; beside it, while it comes, what has come
    simple/<project>/index.html        the files that were here, with their hashes
    seen/                              see `unhashed`

A file is deleted when uv has unpacked it into its own cache, but for those that builds take: uv reads them for each
build. The line on the page stays as long as uv has that: it finds what it unpacked, and what it built, under the index
that listed it.

The format: https://packaging.python.org/en/latest/specifications/simple-repository-api/#base-html-api
"""

from __future__ import annotations

import html
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_sdist_filename, parse_wheel_filename

from paceline.packages.held import held
from paceline.progress import silent
from paceline.store import transaction
from paceline.store.digests import sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from paceline.progress import Progress
    from paceline.types import Package

_LISTED = re.compile(r'#sha256=(?P<sha256>[0-9a-f]{64})">(?P<name>[^<]+)</a>')

BUNDLES = "bundles"
"""The folder of the cache that has a depot of its own, for what a bundle is made of."""


@dataclass(frozen=True)
class PackageFile:
    """A wheel or a source distribution."""

    name: str
    sha256: str
    size: int | None = None
    url: str | None = None
    """None for a file that needs no fetching."""
    here: str | None = field(default=None, compare=False)
    """The `file:` address of one that lies in a folder of this machine which stands for an index."""

    @property
    def project(self) -> str:
        """The normalized name of the package. Raises ValueError for what is not named like one's file."""
        return str(canonicalize_name(str(self._parsed[0])))

    @property
    def version(self) -> str:
        """The normalized version of the package. Raises as `project`."""
        return str(self._parsed[1])

    @property
    def _parsed(self) -> tuple[object, ...]:
        return (parse_wheel_filename if self.name.endswith(".whl") else parse_sdist_filename)(self.name)


class Depot:
    """The fetched files under one cache folder."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "packages"
        self._pages = self.folder / "simple"

    @property
    def index(self) -> str | None:
        """The address of its pages; None when there are none."""
        return self._pages.resolve().as_uri() if self._pages.is_dir() else None

    @contextmanager
    def held(self, progress: Progress) -> Iterator[bool]:
        """Keep others from bringing and dropping files meanwhile; yields whether that had to be waited for."""
        with held(self.folder, progress, "another installation fetches packages into the same cache") as waited:
            yield waited

    def path(self, file: PackageFile) -> Path:
        """Where the file is, or would be."""
        return self.folder / "files" / file.sha256 / file.name

    def find(self, package: Package) -> PackageFile | None:
        """A file of `package` that is here, whole, with one of its pinned hashes, and fits this Python."""
        for sha256 in package.sha256:
            for path in self.folder.glob(f"files/{sha256}/*"):
                if _fits(path.name) and sha256_of(path) == sha256:
                    return PackageFile(path.name, sha256, path.stat().st_size)
        return None

    def add(self, files: Iterable[PackageFile]) -> None:
        """Let the pages list `files`. Raises ValueError for a name that no package's file has."""
        with self._changing():
            for file in files:
                page = self._pages / file.project / "index.html"
                link = f"../../files/{file.sha256}/{quote(file.name)}#sha256={file.sha256}"
                line = f'<a href="{link}">{html.escape(file.name)}</a><br>'
                lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
                if line not in lines:
                    transaction.make_folder(page.parent)
                    self._write(page, [*lines, line])

    def drop(self, files: Iterable[PackageFile]) -> None:
        """Delete files that uv has taken over. While `held`."""
        for file in files:
            transaction.discard(self.path(file).parent)

    def clear(self, progress: Progress = silent) -> None:
        """Delete what was fetched, whole or not; builds fetch theirs again."""
        if self.folder.is_dir():
            with self.held(progress):
                transaction.discard(self.folder / "files")
                transaction.discard(self.folder / "seen")

    def forget_lost(self, uv_cache: Path, progress: Progress = silent) -> None:
        """Take from the pages the lines of files that are neither here nor, unpacked or built, in uv's cache."""
        if not self._pages.is_dir():
            return
        with self.held(progress), self._changing():
            for page in self._pages.glob("*/index.html"):
                lines = page.read_text(encoding="utf-8").splitlines()
                kept = [line for line in lines if self._is_of_use(line, page.parent.name, uv_cache)]
                if not kept:
                    transaction.discard(page.parent)
                elif kept != lines:
                    self._write(page, kept)
            transaction.discard_empty(self._pages)

    def _is_of_use(self, line: str, project: str, uv_cache: Path) -> bool:
        listed = _LISTED.search(line)
        if listed is None:
            return False
        file = PackageFile(html.unescape(listed["name"]), listed["sha256"])
        if self.path(file).exists():
            return True
        # Of the index it was found under, uv has wheels-v*/index/*/<project>/<version>-<tags> and, of what is built,
        # sdists-v*/index/*/<project>/<version>.
        return any(
            entry.name == file.version or entry.name.startswith(f"{file.version}-")
            for entry in uv_cache.glob(f"*/index/*/{project}/*")
        )

    def _write(self, page: Path, lines: Sequence[str]) -> None:
        draft = page.with_name(".index.html")
        transaction.write_text(draft, "\n".join([*lines, ""]))
        transaction.settle(draft, page)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        from filelock import FileLock

        transaction.make_folder(self.folder)
        with FileLock(self.folder / "lock"):
            yield


def _fits(name: str) -> bool:
    """Whether it is the name of a source distribution, or of a wheel for the Python that runtimes are built on."""
    try:
        return name.endswith(".tar.gz") or not parse_wheel_filename(name)[3].isdisjoint(sys_tags())
    except InvalidWheelFilename:  # a lock, or what has come of a file so far
        return False
