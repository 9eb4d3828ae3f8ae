"""The signed registries that are trusted here, and what was last verified of each.

    <home>/registries/NAME.json                 where it is and the root that trust starts from
    <home>/registries/NAME-ANCHOR/verified.json the registry that was verified last, and until when it counts
    <home>/registries/NAME-ANCHOR/metadata/     what the TUF client remembers, so that nothing older is accepted

ANCHOR is a digest of address and root: with another root or at another address nothing of the old one counts. Who ships
Paceline to others can bring `NAME.json` files in folders that PACELINE_REGISTRIES names; they come before those of the
home. Reading any of this imports no TUF and asks nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from paceline import paths, refusals
from paceline.errors import NotFoundError, RegistryError, UsageError
from paceline.registry.reading import parse_registry, parse_registry_value
from paceline.registry.writing import registry_value
from paceline.store import transaction
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from paceline.types import Release

FOLDERS = "PACELINE_REGISTRIES"
"""The environment variable: more folders with trusted registries, separated like PATH."""
SCHEMA_VERSION = 1
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


@dataclass(frozen=True)
class TrustedRegistry:
    """A registry that may bring releases when its signatures, starting from `root`, verify."""

    name: str
    url: str
    """`metadata/` and `targets/` are below it; without a slash at the end."""
    root: Mapping[str, Any]
    """TUF root metadata as JSON values."""
    trusted_at: datetime
    file: Path
    folder: Path
    """What was verified, and what the TUF client remembers; may not exist."""


@dataclass(frozen=True)
class VerifiedRegistry:
    """What a registry held when it was verified last."""

    releases: tuple[Release, ...]
    sha256: str
    """Of the registry as it was published."""
    verified_at: datetime
    expires_at: datetime
    """The earliest end of all signatures; from then on its releases do not count."""
    first_seen: Mapping[str, datetime]
    """By the id of each release that does not say when it was published, when it was first verified as it is now."""

    def expired(self, now: datetime) -> bool:
        return now >= self.expires_at

    def dated(self) -> tuple[Release, ...]:
        """The releases, those that do not say when they were published with the time when they were first seen."""
        return tuple(
            r if r.published else replace(r, published=self.first_seen[r.id].isoformat(timespec="seconds"))
            for r in self.releases
        )


def trusted(home: Path) -> tuple[TrustedRegistry, ...]:
    """Every trusted registry, the first one first: of two that disagree about a release, the first is right.

    Raises RegistryError for a file that is none.
    """
    own = home / "registries"
    brought = [paths.given(p) for p in os.environ.get(FOLDERS, "").split(os.pathsep) if p]
    found: dict[str, TrustedRegistry] = {}
    for folder in (*brought, own):
        here = [_read(file, own) for file in _files(folder)]
        for registry in sorted(here, key=lambda r: (r.trusted_at, r.name)):
            found.setdefault(registry.name, registry)
    return tuple(found.values())


def get_trusted(home: Path, name: str) -> TrustedRegistry:
    """The trusted registry of that name. Raises NotFoundError."""
    known = {registry.name: registry for registry in trusted(home)}
    if name not in known:
        raise NotFoundError(
            f"no trusted registry is named {name!r} (trusted: {', '.join(known) or 'none'})",
            help="`paceline registry trust URL --root FILE` adds one",
        )
    return known[name]


def make_trusted(home: Path, url: str, root: Mapping[str, Any], name: str | None = None) -> TrustedRegistry:
    """A registry as it would be trusted, nothing written yet. Raises UsageError for what is no address or no name."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(
            f"{url!r} is no address of a registry: {error}", help="give one such as https://example.org/registry"
        ) from None
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(
            f"{url!r} is no address of a registry", help="give one such as https://example.org/registry", param="url"
        )
    if parts.username or parts.password:
        raise UsageError(
            f"the address at {parts.hostname} holds a password", help="put it into a .netrc file", param="url"
        )
    chosen = name or parts.hostname
    if not _NAME.fullmatch(chosen):
        raise UsageError(
            f"{chosen!r} is no name for a registry", help="use small letters, digits, dots and dashes", param="name"
        )
    own = home / "registries"
    at = datetime.now(UTC).replace(microsecond=0)
    return _registry(own / f"{chosen}.json", own, url.rstrip("/"), root, at)


def remember_trust(registry: TrustedRegistry) -> None:
    """Trust `registry` from now on, instead of one of that name. Raises StoreError."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "url": registry.url,
        "trusted_at": registry.trusted_at.isoformat(),
        "root": registry.root,
    }
    with transaction.explained("trusting a registry", registry.file.parent):
        transaction.write_json(registry.file, value)
        for folder in _folders(registry.file):
            if folder != registry.folder:
                transaction.discard(folder)


def forget(home: Path, name: str) -> None:
    """Trust a registry no longer; what it brought is not offered any more, what is installed stays.

    Raises NotFoundError, and UsageError for one that PACELINE_REGISTRIES brings.
    """
    registry = get_trusted(home, name)
    if registry.file.parent != home / "registries":
        raise UsageError(
            f"{name} is trusted by {registry.file}, which is not this home's", help=f"see what sets {FOLDERS}"
        )
    with transaction.explained(f"forgetting {name}", home):
        transaction.delete(registry.file)
        for folder in _folders(registry.file):
            transaction.discard(folder)


def verified(registry: TrustedRegistry) -> VerifiedRegistry | None:
    """What was verified last; None when nothing was yet. Raises RegistryError when it cannot be read."""
    file, way_out = registry.folder / "verified.json", f"`paceline registry refresh {registry.name}` asks it again"
    try:
        data = read_object(file)
        releases = parse_registry_value(data["registry"], _named(registry), way_out=way_out, remote=True)
        verified_at = datetime.fromisoformat(data["verified_at"])
        seen = {digest: datetime.fromisoformat(at) for digest, at in data.get("first_seen", {}).items()}
        return VerifiedRegistry(
            releases,
            data["sha256"],
            verified_at,
            datetime.fromisoformat(data["expires_at"]),
            {r.id: seen.get(_essence(r), verified_at) for r in releases if r.published is None},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"what was verified of the registry {registry.name} cannot be read from {file}: {refusals.words(error)}",
            help=refusals.way_out(error, file) or way_out,
        ) from None


def remember_verified(
    registry: TrustedRegistry, releases: Iterable[Release], sha256: str, *, at: datetime, expires: datetime
) -> None:
    """Let `releases`, which have been verified, count until `expires`.

    One that was there before, and is made of something else now, is seen for the first time.
    """
    releases, seen = list(releases), _seen(registry)
    digests = [_essence(release) for release in releases if release.published is None]
    value = {
        "schema_version": SCHEMA_VERSION,
        "url": registry.url,
        "sha256": sha256,
        "verified_at": at.isoformat(timespec="seconds"),
        "expires_at": expires.isoformat(timespec="seconds"),
        "first_seen": {digest: seen.get(digest, at).isoformat(timespec="seconds") for digest in digests},
        "registry": registry_value(releases),
    }
    transaction.write_json(registry.folder / "verified.json", value)


def _seen(registry: TrustedRegistry) -> dict[str, datetime]:
    """By their essence, when the releases that were verified last were first seen; nothing where that is unreadable."""
    try:
        known = verified(registry)
    except RegistryError:
        return {}
    if known is None:
        return {}
    return {_essence(r): known.first_seen[r.id] for r in known.releases if r.id in known.first_seen}


def _essence(release: Release) -> str:
    """A digest of all that a release is, without what is only said of it."""
    value = registry_value([replace(release, notes="", published=None)])
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_releases(registry: TrustedRegistry, data: bytes) -> tuple[Release, ...]:
    """The releases in a registry's text as it was published. Raises RegistryError."""
    return parse_registry(data, _named(registry), way_out=f"report it to who publishes {registry.url}", remote=True)


def age(then: datetime, now: datetime) -> str:
    """A span for people: `3 days`."""
    seconds = max(0, int((now - then).total_seconds()))
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        if seconds >= size or size == 1:
            n = seconds // size
            return f"{n} {unit}{'' if n == 1 else 's'}"
    raise AssertionError


def _named(registry: TrustedRegistry) -> str:
    return f"the registry {registry.name}"


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.glob("*.json"))
    except OSError as error:  # a folder that is not there has no files, and is no error
        raise RegistryError(
            f"the trusted registries in {folder} cannot be read: {refusals.words(error)}",
            help=refusals.way_out(error, folder),
        ) from None


def _folders(file: Path) -> list[Path]:
    """Whatever was remembered of a registry of this name, with whichever root."""
    wanted = re.compile(re.escape(file.stem) + "-[0-9a-f]{16}")
    return [folder for folder in file.parent.iterdir() if wanted.fullmatch(folder.name)]


def _read(file: Path, own: Path) -> TrustedRegistry:
    try:
        data = read_object(file)
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {data['schema_version']!r} is not {SCHEMA_VERSION}")
        if not _NAME.fullmatch(file.stem) or not isinstance(data["root"], dict):
            raise ValueError("its name or its root is none")
        at = datetime.fromisoformat(data["trusted_at"]) if "trusted_at" in data else datetime.min.replace(tzinfo=UTC)
        return _registry(file, own, str(data["url"]).rstrip("/"), data["root"], at)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RegistryError(
            f"{file} does not say which registry is trusted: {error!r}",
            help=refusals.way_out(error, file)
            or "delete it, and trust the registry again: paceline registry trust URL --root FILE",
        ) from None


def _registry(file: Path, own: Path, url: str, root: Mapping[str, Any], at: datetime) -> TrustedRegistry:
    anchor = hashlib.sha256(json.dumps([url, root], sort_keys=True).encode()).hexdigest()[:16]
    return TrustedRegistry(file.stem, url, root, at, file, own / f"{file.stem}-{anchor}")
