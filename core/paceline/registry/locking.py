"""Lock the releases of a registry file anew: exact versions, hashes and sizes of all that their recipes' roots need.

People write each release's facts and, in its recipe, `roots` (what to install), `build_roots` (what building it needs)
and `unhashed` (index pages that publish no hashes). Everything else of a recipe's packages is found out here.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from paceline import network
from paceline.errors import RegistryError
from paceline.packages import pages, python_versions
from paceline.packages.download import Digest
from paceline.packages.locked import pinned_to
from paceline.packages.resolution import Resolver
from paceline.query import same_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from paceline.network import Client
    from paceline.packages.pages import Listed
    from paceline.types import Package, Release, Requirements

_OS_TAGS = {"linux": "linux", "macos": "macosx", "windows": "win"}
_ARCH_TAGS = {"x86_64": ("x86_64", "amd64"), "arm64": ("arm64", "aarch64")}


def lock(
    release: Release, *, cache: Path, tell: Callable[[str], None], fetch: bool = True, keep: bool = False
) -> Release:
    """`release` with new packages, and when its engine was uploaded. Raises InstallError for roots not to be resolved.

    `fetch`: wheels of pages that publish no hashes are downloaded for their sha256 and size; without it they stay
    unpinned.
    `keep`: the versions that are locked stay; what else is needed, hashes and sizes are looked up anew.
    `tell` is given a line now and then. Raises RegistryError when a page cannot be read or lacks the wheel.
    """
    recipe = release.recipe
    if not recipe.roots:
        return release
    resolver = Resolver(release.requires, python_versions.admitted(release.requires.python), cache=cache)
    packages = resolver.packages(recipe, recipe.roots, keep=recipe.packages if keep else ())
    published = _published(release, packages, resolver.uploaded)
    if fetch:
        packages = tuple(_fetched(p, release.requires, tell) if p.index and not p.sha256 else p for p in packages)
    build_packages = resolver.build_packages(recipe.build_roots, keep=recipe.build_packages if keep else ())
    locked = replace(recipe, packages=packages, build_packages=build_packages)
    return replace(release, recipe=locked, published=published)


def _published(release: Release, packages: Sequence[Package], uploaded: Mapping[str, datetime]) -> str | None:
    """When the engine's package was uploaded: that of the roots which has the release's version.

    What the release says already where no root has it, or the index does not say.
    """
    versions = {p.name: p.version for p in packages}
    roots = [str(canonicalize_name(Requirement(root).name)) for root in release.recipe.roots]
    engine = next((name for name in roots if same_version(versions.get(name, ""), release.version)), None)
    if engine is None or engine not in uploaded:
        return release.published
    return uploaded[engine].isoformat(timespec="seconds")


def _fetched(package: Package, requires: Requirements, tell: Callable[[str], None]) -> Package:
    """A package with sha256 and size of every wheel that its index page has for the platform."""
    assert package.index is not None
    page = pages.address(package.index, package.name)
    files: dict[str, int | None] = {}
    try:
        with network.client() as client:
            for file in _wheels(_listed(client, page), package, requires):
                if file.sha256 is not None:
                    files[file.sha256] = file.size
                    continue
                tell(f"fetching {file.name} for its sha256")
                digest = _digest(client, file.url)
                files[digest.sha256] = digest.size
    except (httpx.HTTPError, ValueError) as error:
        raise RegistryError(
            f"{page} cannot be read: {error or type(error).__name__}", help="check the network, then lock again"
        ) from None
    if not files:
        raise RegistryError(
            f"{page} has no wheel of {package.name} {package.version} for {requires.os} on {requires.arch}",
            help="correct the version in the recipe's roots, or the page in `unhashed`",
        )
    return pinned_to(package, files)


def _wheels(listed: Sequence[Listed], package: Package, requires: Requirements) -> list[Listed]:
    """The wheels of this version that could be installed on the platform."""
    os_tag, arch_tags = _OS_TAGS.get(requires.os or "", ""), _ARCH_TAGS.get(requires.arch or "", ())

    def fits(file: Listed) -> bool:
        try:
            name, version, _, tags = parse_wheel_filename(file.name)
        except InvalidWheelFilename:
            return False
        platforms = [tag.platform for tag in tags]
        here = [p for p in platforms if p == "any" or (os_tag in p and any(arch in p for arch in arch_tags))]
        return name == canonicalize_name(package.name) and version == Version(package.version) and bool(here)

    return [file for file in listed if fits(file)]


def _listed(client: Client, page: str) -> list[Listed]:
    answer = client.get(page, headers={"Accept": pages.ACCEPT})
    answer.raise_for_status()
    return pages.parse(answer.text, str(answer.url))


def _digest(client: Client, url: str) -> Digest:
    digest, size = hashlib.sha256(), 0
    with client.stream("GET", url) as answer:
        answer.raise_for_status()
        for part in answer.iter_bytes():
            digest.update(part)
            size += len(part)
    return Digest(digest.hexdigest(), size)
