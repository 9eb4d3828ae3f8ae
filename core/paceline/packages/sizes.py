"""How large packages are whose lock does not say it, as far as their index or their server does."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from paceline import network
from paceline.errors import DownloadError
from paceline.packages.locked import fetched_here

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.packages.depot import PackageFile
    from paceline.packages.indexes import Indexes
    from paceline.packages.pages import Listed
    from paceline.types import Recipe


def asked(recipe: Recipe, indexes: Indexes) -> dict[str, int]:
    """By name, the bytes of the largest file of each package that installing `recipe` here would take.

    Nobody is asked where every size is in the lock, nor offline; what nobody says is absent.
    """
    unsized = [p for p in fetched_here(recipe) if not p.size]
    if not unsized or network.is_offline():
        return {}
    found: dict[str, Sequence[PackageFile | Listed]] = {**indexes.files([p for p in unsized if p.sha256])}
    for package in unsized:
        if package.index is not None and not package.sha256:
            with suppress(DownloadError):
                found[package.name] = [indexes.on_its_page(package)]
    told = {name: [_size(file, indexes) for file in files] for name, files in found.items()}
    return {name: max(filter(None, sizes)) for name, sizes in told.items() if sizes and all(sizes)}


def _size(file: PackageFile | Listed, indexes: Indexes) -> int | None:
    if file.size is not None or file.url is None:
        return file.size
    head = indexes.head(file.url)
    return head.size if head is not None else None
