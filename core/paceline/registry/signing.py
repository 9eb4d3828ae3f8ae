"""The private keys of a signed registry: ed25519, one or more a role, as PEM files (PKCS 8) of one folder.

`root.pem`, `targets.pem`, `snapshot.pem`, `timestamp.pem`; a key that replaces another is `root-2.pem` and so on. Which
of them counts is what the newest root says. The files are not encrypted; only their owner can read them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from paceline.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from securesystemslib.signer import CryptoSigner


def new_keys(folder: Path, roles: Iterable[str]) -> list[Path]:
    """Make a key for each role and return their files. Raises RegistryError when there is one already."""
    roles = list(roles)
    if taken := [file for role in roles for file in _files(folder, role)]:
        raise RegistryError(
            f"{taken[0]} exists already",
            help="to replace a key: paceline registry keys rotate; else use another folder",
        )
    return [new_key(folder, role) for role in roles]


def new_key(folder: Path, role: str) -> Path:
    """Make a key for a role and return its file. A key that is there stays."""
    from securesystemslib.signer import CryptoSigner

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    taken = len(_files(folder, role))
    file = folder / (f"{role}-{taken + 1}.pem" if taken else f"{role}.pem")
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(CryptoSigner.generate_ed25519().private_bytes)
        stream.flush()
        os.fsync(stream.fileno())
    return file


def keys_of(folder: Path, role: str) -> list[CryptoSigner]:
    """The keys that the folder has for a role, oldest first. Raises RegistryError for a file that is no key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    found = []
    for file in _files(folder, role):
        try:
            found.append(CryptoSigner(load_pem_private_key(file.read_bytes(), None)))
        except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as error:
            raise RegistryError(
                f"{file} cannot be read as a private key: {error}",
                help="keys are PEM files without a passphrase, as `paceline registry keys new` makes them",
            ) from None
    return found


def _files(folder: Path, role: str) -> list[Path]:
    """A role's key files in the order they were made."""
    found = [*folder.glob(f"{role}.pem"), *folder.glob(f"{role}-*.pem")]
    return sorted(found, key=lambda file: (len(file.name), file.name))
