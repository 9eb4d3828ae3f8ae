"""Publish a registry as a signed repository of The Update Framework (TUF, specification 1.0).

A repository is a folder that any web server can serve as it is:

    metadata/1.root.json, 2.root.json, ...   which keys may sign what; root.json is the newest one again
    metadata/N.targets.json                  length and sha256 of the registry
    metadata/N.snapshot.json                 which targets belong together
    metadata/timestamp.json                  which snapshot is the newest, signed anew again and again
    targets/SHA256.registry.json             the registry

Files are written in the order in which they are referred to, the timestamp last, each whole or not at all; so clients
see the old or the new state of a repository, also when the publisher is killed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from paceline.errors import RegistryError
from paceline.registry.reading import parse_registry
from paceline.registry.signing import keys_of, new_key
from paceline.store import transaction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, MetaFile, Root, Signed

TARGET = "registry.json"
ROLES = ("root", "targets", "snapshot", "timestamp")
DAYS: Mapping[str, float] = {"root": 365, "targets": 180, "snapshot": 30, "timestamp": 7}
"""How long what a role signs is valid. A client that hears nothing new goes on with what it verified for as long as the
shortest of them; somebody who withholds news from it can do so no longer than that either."""


@dataclass(frozen=True)
class Published:
    """What was signed, and until when each role's signature is valid."""

    signed: tuple[str, ...]
    """The roles that were signed anew."""
    versions: Mapping[str, int]
    expires: Mapping[str, datetime]
    warnings: tuple[str, ...] = ()
    """What expires soon and could not be signed, because the key is elsewhere."""


def publish(file: Path, keys: Path, site: Path, *, days: Mapping[str, float] | None = None) -> Published:
    """Sign the registry `file` into the repository `site`, which is made when there is none.

    Needs the keys of targets, snapshot and timestamp in the folder `keys`, and that of the root for a new repository;
    then the public part of each. Raises RegistryError for a registry that no client would accept and for missing keys.
    """
    data = file.read_bytes()
    parse_registry(data, f"the registry {file}", way_out="mend the file at that place", remote=True)
    with _repository(site, keys, days) as repository:
        if not repository.exists():
            repository.found()
        repository.set_target(data)
        repository.renew(at_once=True)
        return repository.published()


def renew(keys: Path, site: Path, *, days: Mapping[str, float] | None = None, at_once: bool = True) -> Published:
    """Sign the timestamp of `site` anew, and every other role that has lived half its time and whose key is in `keys`.

    With `at_once` False the timestamp, too, only when half its time is over. Raises RegistryError when there is no
    repository, or when its timestamp cannot be signed.
    """
    with _repository(site, keys, days) as repository:
        repository.must_exist()
        repository.renew(at_once=at_once)
        return repository.published()


def rotate(role: str, keys: Path, site: Path, *, days: Mapping[str, float] | None = None) -> tuple[Published, Path]:
    """Make a new key for `role` and publish a root that trusts it instead of the old one; returns the new key's file.

    Needs the root's key, and for the root's own rotation nothing else. Clients follow by the chain of roots.
    """
    with _repository(site, keys, days) as repository:
        repository.must_exist()
        file = new_key(keys, role)
        repository.replace_key(role, keys_of(keys, role)[-1])
        return repository.published(), file


@contextmanager
def _repository(site: Path, keys: Path, days: Mapping[str, float] | None) -> Iterator[_Repository]:
    """The repository in `site`, changed by nobody else meanwhile."""
    from filelock import FileLock

    if keys.resolve().is_relative_to(site.resolve()):
        raise RegistryError(
            f"the keys in {keys} lie below {site}, which is there to be served", help="keep them in another folder"
        )
    with transaction.explained("publishing the registry", site):
        transaction.make_folder(site)
        with FileLock(site / ".lock"):
            yield _Repository(site, keys, {**DAYS, **(days or {})})


class _Repository:
    """The newest metadata of a repository, and its next versions."""

    def __init__(self, site: Path, keys: Path, days: Mapping[str, float]) -> None:
        self._metadata = site / "metadata"
        self._targets = site / "targets"
        self._site = site
        self._keys = keys
        self._days = days
        self._now = datetime.now(UTC).replace(microsecond=0)
        self._signed: list[str] = []
        self._warnings: list[str] = []
        self._roles: dict[str, Metadata[Any]] = self._read()

    def exists(self) -> bool:
        return "root" in self._roles

    def must_exist(self) -> None:
        if "timestamp" not in self._roles:
            raise RegistryError(
                f"{self._site} holds no signed registry",
                help="make one: paceline registry sign FILE --keys KEYS --site SITE",
            )

    def found(self) -> None:
        """Make the first root: each role signed by the keys that the folder has for it."""
        from tuf.api.metadata import Metadata, Root

        root = Root(consistent_snapshot=True)
        for role in ROLES:
            signers = keys_of(self._keys, role)
            if not signers:
                raise RegistryError(
                    f"{self._keys} has no key for {role}", help=f"make keys: paceline registry keys new {self._keys}"
                )
            for signer in signers:
                root.add_key(signer.public_key, role)
        self._roles["root"] = Metadata(root)
        self._sign("root")

    def set_target(self, data: bytes) -> None:
        """Have the targets name this registry; nothing to do when they do already."""
        from tuf.api.metadata import Metadata, TargetFile, Targets

        entry = TargetFile.from_data(TARGET, data, ["sha256"])
        targets = self._roles.setdefault("targets", Metadata(Targets()))
        if targets.signed.targets != {TARGET: entry}:
            name = f"{entry.hashes['sha256']}.{TARGET}"
            transaction.replace_file(self._targets / name, data)
            targets.signed.targets = {TARGET: entry}
            self._sign("targets")

    def replace_key(self, role: str, signer: CryptoSigner) -> None:
        """Let a new key sign for a role.

        What it signs is published first, signed with the old key, too, where that is at hand: so clients can verify it
        by the old root and by the new one.
        """
        root: Root = self._roles["root"].signed
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(signer.public_key, role)
        if role != "root":
            self._sign(role)
        self.renew(at_once=role != "root")
        if "root" not in self._signed:
            self._sign("root")

    def renew(self, *, at_once: bool) -> None:
        """Sign what is due, in the order in which one refers to the other."""
        for role in ("root", "targets"):
            if role not in self._signed and self._due(role):
                self._sign_if_possible(role)
        if "targets" in self._signed or "snapshot" not in self._roles:
            self._sign("snapshot")
        elif "snapshot" not in self._signed and self._due("snapshot"):
            self._sign_if_possible("snapshot")
        news = "snapshot" in self._signed or "timestamp" not in self._roles
        if news or ("timestamp" not in self._signed and (at_once or self._due("timestamp"))):
            self._sign("timestamp")

    def published(self) -> Published:
        return Published(
            tuple(dict.fromkeys(self._signed)),
            {role: metadata.signed.version for role, metadata in self._roles.items()},
            {role: metadata.signed.expires for role, metadata in self._roles.items()},
            tuple(self._warnings),
        )

    def _due(self, role: str) -> bool:
        left: timedelta = self._roles[role].signed.expires - self._now
        return left < timedelta(days=self._days[role]) / 2

    def _sign_if_possible(self, role: str) -> None:
        try:
            self._sign(role)
        except RegistryError as error:
            self._roles[role] = self._read()[role]
            expires = self._roles[role].signed.expires
            self._warnings.append(f"the signature of {role} expires on {expires:%Y-%m-%d}: {error.message}")

    def _sign(self, role: str) -> None:
        """Sign the next version of a role with every key at hand that the root names for it, and write it.

        The root before this one counts as well: a new root has to satisfy both.
        """
        metadata = self._refer(role)
        roots = [self._roles["root"].signed, *(m.signed for m in (self._read().get("root"),) if m is not None)]
        trusted = {keyid for root in roots for keyid in root.roles[role].keyids}
        signers = [s for s in keys_of(self._keys, role) if s.public_key.keyid in trusted]
        signed: Signed = metadata.signed
        signed.version += 1 if metadata.signatures else 0
        signed.expires = self._now + timedelta(days=self._days[role])
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        for root in roots if role == "root" else roots[:1]:
            self._check(role, root, metadata)
        self._write(role, metadata)
        self._signed.append(role)

    def _refer(self, role: str) -> Metadata[Any]:
        """The metadata of a role, saying which file it refers to is the newest; made if there is none."""
        from tuf.api.metadata import Metadata, Snapshot, Timestamp

        if role == "snapshot":
            snapshot = self._roles.setdefault(role, Metadata(Snapshot()))
            snapshot.signed.meta = {"targets.json": self._meta_file("targets")}
        elif role == "timestamp":
            timestamp = self._roles.setdefault(role, Metadata(Timestamp()))
            timestamp.signed.snapshot_meta = self._meta_file("snapshot")
        return self._roles[role]

    def _meta_file(self, role: str) -> MetaFile:
        from tuf.api.metadata import MetaFile

        version = self._roles[role].signed.version
        return MetaFile.from_data(version, (self._metadata / f"{version}.{role}.json").read_bytes(), ["sha256"])

    def _check(self, role: str, root: Root, metadata: Metadata[Any]) -> None:
        from tuf.api.exceptions import UnsignedMetadataError

        try:
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError:
            raise RegistryError(
                f"{role} cannot be signed: a key that the root of {self._site} names for it is not in {self._keys}",
                help=f"put the key of {role} into the folder, or make a new one: paceline registry keys rotate {role}",
            ) from None

    def _write(self, role: str, metadata: Metadata[Any]) -> None:
        data = metadata.to_bytes()
        name = f"{role}.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        transaction.replace_file(self._metadata / name, data)
        if role == "root":
            transaction.replace_file(self._metadata / "root.json", data)

    def _read(self) -> dict[str, Metadata[Any]]:
        """What is published: the newest root, and what the timestamp leads to."""
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata

        found: dict[str, Metadata[Any]] = {}
        roots = [int(p.name.partition(".")[0]) for p in self._metadata.glob("[0-9]*.root.json")]
        try:
            if roots:
                found["root"] = Metadata.from_file(str(self._metadata / f"{max(roots)}.root.json"))
            if (self._metadata / "timestamp.json").exists():
                found["timestamp"] = Metadata.from_file(str(self._metadata / "timestamp.json"))
                version = found["timestamp"].signed.snapshot_meta.version
                found["snapshot"] = Metadata.from_file(str(self._metadata / f"{version}.snapshot.json"))
                version = found["snapshot"].signed.meta["targets.json"].version
                found["targets"] = Metadata.from_file(str(self._metadata / f"{version}.targets.json"))
        except (RepositoryError, KeyError) as error:
            raise RegistryError(
                f"the metadata in {self._metadata} is damaged: {error}", help="put it back from a copy of the folder"
            ) from None
        return found
