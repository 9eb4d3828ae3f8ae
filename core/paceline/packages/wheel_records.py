"""Whether installed packages are what their wheels held, by the RECORD that every wheel brings.

uv links the files of its cache into an environment instead of copying them, so whatever writes into an installed file
also writes into the cache, and later installations would take the damage over. uv itself looks at a wheel's hash when
it fetches the wheel, and not again.

The format: https://packaging.python.org/en/latest/specifications/recording-installed-packages/#the-record-file
"""

from __future__ import annotations

import base64
import csv
import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def damaged(environment: Path) -> dict[str, str]:
    """By package, the first file in a virtual environment that is missing or not what its RECORD says."""
    found: dict[str, str] = {}
    for packages in (*environment.glob("lib/python*/site-packages"), *environment.glob("Lib/site-packages")):
        for record in sorted(packages.glob("*.dist-info/RECORD")):
            if (file := next(_wrong_files(record), None)) is not None:
                found[record.parent.name.partition("-")[0].replace("_", "-")] = file
    return found


def _wrong_files(record: Path) -> Iterator[str]:
    root = record.parents[1]
    with record.open(encoding="utf-8", newline="") as lines:
        for row in csv.reader(lines):
            if len(row) == 3 and row[1].startswith("sha256="):
                try:
                    with (root / row[0]).open("rb") as file:
                        digest = hashlib.file_digest(file, "sha256").digest()
                except OSError:
                    yield row[0]
                    continue
                if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != row[1].removeprefix("sha256="):
                    yield row[0]
