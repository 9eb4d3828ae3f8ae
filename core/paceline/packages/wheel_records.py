"""Whether installed packages are what their wheels held, by the RECORD that every wheel brings.

uv links the files of its cache into an environment instead of copying them, so whatever writes into an installed file
also writes into the cache, and later installations would take the damage over. uv itself looks at a wheel's hash when
it fetches the wheel, and not again.

The format: https://packaging.python.org/en/latest/specifications/recording-installed-packages/#the-record-file
"""

from __future__ import annotations

import base64
import csv
import os
from typing import TYPE_CHECKING

from paceline.store.manifest import packages_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from paceline.store.digests import Digests


def damaged(environment: Path, digests: Digests) -> dict[str, str]:
    """By package, the first file in a virtual environment that is missing or not what its RECORD says.

    `digests` reads the files, and then knows them.
    """
    found: dict[str, str] = {}
    for packages in packages_of(environment):
        recorded = {record: dict(_recorded(record)) for record in sorted(packages.glob("*.dist-info/RECORD"))}
        here = {path: status for files in recorded.values() for path in files if (status := _status(packages, path))}
        hashed = digests.of({f"{packages}/{path}": status for path, status in here.items()})
        for record, files in recorded.items():
            wrong = (path for path, told in files.items() if _as_told(hashed.get(f"{packages}/{path}")) != told)
            if (file := next(wrong, None)) is not None:
                found[record.parent.name.partition("-")[0].replace("_", "-")] = file
    return found


def _recorded(record: Path) -> Iterator[tuple[str, str]]:
    """The files that have a hash there, by their path from the packages' folder."""
    with record.open(encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines):
            if len(row) == 3 and row[1].startswith("sha256="):
                yield row[0], row[1]


def _status(packages: Path, path: str) -> os.stat_result | None:
    try:
        return os.stat(f"{packages}/{path}")  # noqa: PTH116 - thousands of files, and Path costs more than stat
    except (OSError, ValueError):
        return None


def _as_told(sha256: str | None) -> str | None:
    """A hash as a RECORD writes it; None for that of a file that is not there."""
    if sha256 is None:
        return None
    return "sha256=" + base64.urlsafe_b64encode(bytes.fromhex(sha256)).rstrip(b"=").decode()
