"""The files of locked packages, from the package indexes that the user has configured."""

from __future__ import annotations

import os
import platform
import threading
from typing import TYPE_CHECKING

from paceline import network
from paceline.errors import InstallError
from paceline.packages.credentials import Credentials
from paceline.packages.download import download
from paceline.packages.resolution import Resolver
from paceline.packages.source_archives import admit
from paceline.packages.uv import uv_environment
from paceline.types import Requirements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from paceline.packages.depot import PackageFile
    from paceline.packages.download import Progress
    from paceline.types import Package


class Indexes:
    """The package indexes that the user has configured for uv or pip: uv says where files are, we fetch them."""

    def __init__(self, cache: Path, requires: Requirements | None = None, pythons: Sequence[str] = ()) -> None:
        """`requires`, `pythons`: fetch for such a platform and these Pythons ("3.12") instead of this machine's."""
        here = ".".join(platform.python_version_tuple()[:2])
        self._resolver = Resolver(requires or Requirements(), pythons or [here], cache=cache / "resolution")
        self._clients: network.Clients | None = None
        self._lock = threading.Lock()

    def files(self, packages: Sequence[Package]) -> Mapping[str, Sequence[PackageFile]]:
        try:
            return self.locate(packages)
        except InstallError:  # uv, which is asked again to install them, says what is wrong
            return {}

    def locate(self, packages: Sequence[Package]) -> Mapping[str, Sequence[PackageFile]]:
        """As `files`, but raises InstallError with uv's reason when an index cannot be asked or lacks something."""
        return self._resolver.files(packages)

    def bring(self, file: PackageFile, target: Path, progress: Progress) -> None:
        with self._lock:
            if self._clients is None:
                self._clients = network.Clients(auth=Credentials(uv_environment(os.environ)))
        assert file.url is not None
        download(file.url, target, sha256=file.sha256, size=file.size, progress=progress, clients=self._clients)
        admit(target)

    def close(self) -> None:
        """End the connections over which files came."""
        if self._clients is not None:
            self._clients.close()
