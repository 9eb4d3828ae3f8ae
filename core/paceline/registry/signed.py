"""Refresh what is known of a trusted registry: the client of The Update Framework (TUF), and what its answers mean.

python-tuf verifies: a chain of roots from the one that is trusted, then timestamp, snapshot, targets and the registry
itself; nothing older than what was seen before, nothing that is not of one piece, nothing longer than announced,
nothing expired. It expects to be alone, so a lock keeps other processes out.

Every refresh ends in one of four ways. What was verified before stays in use, until its signatures end, whenever the
new could not be: because nothing was there to verify (CANNOT_VERIFY: try again), or because what was there failed
(REFUSED: somebody should look). Expired signatures are refused, too. They may come from a publisher who forgot them, or
from somebody who keeps newer ones away from this machine; that looks the same from here, and waiting mends neither.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from paceline.errors import RegistryError
from paceline.registry import trust
from paceline.store import transaction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paceline.registry.fetching import Fetcher
    from paceline.registry.trust import TrustedRegistry
    from paceline.types import Release

TARGET = "registry.json"
MAX_BYTES = 16_000_000
"""No registry is larger; the one that ships with Paceline has 70 kB."""
DEADLINE_S = 60.0
LOCK_S = 90.0


class State(StrEnum):
    """How a refresh ended."""

    UPDATED = "updated"
    UNCHANGED = "unchanged"
    CANNOT_VERIFY = "cannotVerify"
    """There was nothing to verify. What was verified last stays in use until it expires."""
    REFUSED = "refused"
    """What was there failed its verification. What was verified last stays in use until it expires."""


class Reason(StrEnum):
    """Why a refresh brought nothing."""

    OFFLINE = "offline"
    UNREACHABLE = "unreachable"
    TOO_SLOW = "tooSlow"
    HTTP_STATUS = "httpStatus"
    WEB_PAGE = "webPage"
    NO_METADATA = "noMetadata"
    """What answered is no TUF repository."""
    BUSY = "busy"
    """Another process refreshes it."""
    SIGNATURE = "signature"
    """Not signed by the keys that the root names, or by too few of them."""
    WRONG_VERSION = "wrongVersion"
    """Older than what was seen before, or not the version that was announced."""
    WRONG_CONTENT = "wrongContent"
    """Not the length or the hash that was announced."""
    TOO_LONG = "tooLong"
    EXPIRED = "expired"
    INCONSISTENT = "inconsistent"
    UNREADABLE = "unreadable"
    """Rightly signed, but no registry that this Paceline can read or may follow."""


@dataclass(frozen=True)
class Outcome:
    """What a refresh of one registry came to."""

    name: str
    state: State
    message: str
    reason: Reason | None = None
    help: str | None = None

    @property
    def ok(self) -> bool:
        return self.state in (State.UPDATED, State.UNCHANGED)


def check_root(data: bytes) -> Mapping[str, object]:
    """The TUF root metadata in `data`, which has to be signed as it says itself. Raises RegistryError."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    try:
        metadata: Metadata[Root] = Metadata.from_bytes(data)
        if metadata.signed.type != "root":
            raise RepositoryError(f"it is {metadata.signed.type} metadata")
        metadata.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise RegistryError(
            f"this is no root of a signed registry: {error}",
            help="ask its publisher for metadata/root.json",
            param="root",
        ) from None
    value: Mapping[str, object] = json.loads(data)
    return value


def refresh(registry: TrustedRegistry, *, deadline_s: float = DEADLINE_S, lock_s: float = LOCK_S) -> Outcome:
    """Ask a trusted registry for news, verify them and remember them.

    Raises StoreError when nothing can be remembered here; everything else is an Outcome.
    """
    from filelock import FileLock, Timeout

    with transaction.explained(f"refreshing the registry {registry.name}", registry.folder):
        transaction.make_folder(registry.folder / "metadata")
        try:
            with FileLock(registry.folder / "lock", timeout=lock_s):
                _sweep(registry)
                return _refresh(registry, deadline_s)
        except Timeout:
            return _nothing(registry, Reason.BUSY, "another process is refreshing it")


def _refresh(registry: TrustedRegistry, deadline_s: float) -> Outcome:
    from tuf.api import exceptions as tuf
    from tuf.api.serialization import DeserializationError

    from paceline.registry.fetching import Fetcher, FetchError

    try:
        with Fetcher(deadline_s) as fetcher:
            return _verified(registry, fetcher)
    except FetchError as error:
        return _nothing(registry, Reason(error.why.value), str(error))
    except tuf.DownloadHTTPError as error:
        return _nothing(registry, Reason.HTTP_STATUS, str(error))
    except tuf.DownloadLengthMismatchError as error:
        return _refused(registry, Reason.TOO_LONG, str(error))
    except tuf.DownloadError as error:
        return _nothing(registry, Reason.UNREACHABLE, str(error))
    except DeserializationError as error:
        return _nothing(registry, Reason.NO_METADATA, f"what answers at {registry.url} is no signed registry: {error}")
    except tuf.ExpiredMetadataError as error:
        now = datetime.now(UTC)
        said = f"{error}; this machine's clock says {now:%Y-%m-%d %H:%M} UTC"
        way_out = "check the clock; if it is right, ask the publisher, or somebody keeps newer signatures from you"
        return _refused(registry, Reason.EXPIRED, said, way_out)
    except tuf.BadVersionNumberError as error:
        return _refused(registry, Reason.WRONG_VERSION, str(error))
    except tuf.UnsignedMetadataError as error:
        return _refused(registry, Reason.SIGNATURE, str(error))
    except tuf.LengthOrHashMismatchError as error:
        return _refused(registry, Reason.WRONG_CONTENT, str(error))
    except tuf.RepositoryError as error:
        return _refused(registry, Reason.INCONSISTENT, str(error))
    except RegistryError as error:
        return _refused(registry, Reason.UNREADABLE, error.message, error.help)


def _verified(registry: TrustedRegistry, fetcher: Fetcher) -> Outcome:
    from tuf.api.exceptions import DownloadLengthMismatchError, RepositoryError
    from tuf.ngclient import Updater, UpdaterConfig

    updater = Updater(
        metadata_dir=str(registry.folder / "metadata"),
        metadata_base_url=f"{registry.url}/metadata/",
        target_base_url=f"{registry.url}/targets/",
        fetcher=fetcher,
        config=UpdaterConfig(max_root_rotations=256, max_delegations=0, snapshot_max_length=100_000),
        bootstrap=json.dumps(registry.root).encode(),
    )
    updater.refresh()
    info = updater.get_targetinfo(TARGET)
    if info is None:
        raise RepositoryError(f"its targets name no {TARGET}")
    if info.length > MAX_BYTES:
        raise DownloadLengthMismatchError(f"{TARGET} has {info.length} bytes; at most {MAX_BYTES} make sense")
    before = _before(registry)
    now, expires = datetime.now(UTC), _expiry(registry)
    if before is not None and before[0] == info.hashes.get("sha256"):
        digest, releases = before
    else:
        staged = registry.folder / f".{TARGET}"
        updater.download_target(info, str(staged))
        data = staged.read_bytes()
        digest, releases = hashlib.sha256(data).hexdigest(), trust.read_releases(registry, data)
        transaction.discard(staged)
    trust.remember_verified(registry, releases, digest, at=now, expires=expires)
    state = State.UNCHANGED if before is not None and before[0] == digest else State.UPDATED
    return Outcome(registry.name, state, f"{len(releases)} releases, valid until {expires:%Y-%m-%d %H:%M} UTC")


def _before(registry: TrustedRegistry) -> tuple[str, tuple[Release, ...]] | None:
    """Digest and releases of what was verified last, if that can be read."""
    try:
        known = trust.verified(registry)
    except RegistryError:
        return None
    return (known.sha256, known.releases) if known is not None else None


def _expiry(registry: TrustedRegistry) -> datetime:
    """The earliest end of the four roles' signatures, which the client has just verified and left in its folder."""
    from tuf.api.metadata import Metadata

    folder = registry.folder / "metadata"
    files = [folder / f"{role}.json" for role in ("root", "timestamp", "snapshot", "targets")]
    ends: list[datetime] = [Metadata.from_file(str(file)).signed.expires for file in files]
    return min(ends)


def _sweep(registry: TrustedRegistry) -> None:
    """Delete what a refresh that was killed left behind."""
    trash = [*(registry.folder / "metadata").glob("tmp*"), registry.folder / f".{TARGET}"]
    for leftover in trash:
        transaction.discard(leftover)
    transaction.sweep_unfinished(registry.folder / "verified.json")


def _nothing(registry: TrustedRegistry, reason: Reason, said: str) -> Outcome:
    message = f"the registry {registry.name} cannot be verified now: {said}; {_in_use(registry)}"
    return Outcome(
        registry.name, State.CANNOT_VERIFY, message, reason, f"later: paceline registry refresh {registry.name}"
    )


def _refused(registry: TrustedRegistry, reason: Reason, said: str, help: str | None = None) -> Outcome:
    message = f"the registry {registry.name} is refused: {said}; {_in_use(registry)}"
    way_out = help or f"ask its publisher before anything else; nothing of what {registry.url} sent is used"
    return Outcome(registry.name, State.REFUSED, message, reason, way_out)


def _in_use(registry: TrustedRegistry) -> str:
    """What goes on being used, and how old it is."""
    try:
        known = trust.verified(registry)
    except RegistryError:
        known = None
    if known is None:
        return "nothing of it was verified before, so none of its releases is offered"
    now = datetime.now(UTC)
    then = f"what was verified {trust.age(known.verified_at, now)} ago"
    if known.expired(now):
        return f"{then} has expired, so none of its releases is offered"
    return f"{then} stays in use until {known.expires_at:%Y-%m-%d %H:%M} UTC"
