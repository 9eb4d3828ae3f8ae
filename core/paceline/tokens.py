"""Who may use the local API: tokens, each with its permissions, of which only hashes are kept.

`tokens.json` in the home folder, readable by its owner alone:

    {"schema_version": 1,
     "tokens": [{"id": "9f2c41d7", "name": "laptop", "permissions": ["inference"], "sha256": "...",
                 "created_at": "2026-01-01T00:00:00+00:00"}]}

A token is `sk-pl-<id>-<secret>`. The secret has 256 random bits, so a plain hash of it cannot be searched.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from paceline import refusals
from paceline.errors import AmbiguousError, NotFoundError, StoreError
from paceline.store import Store, transaction
from paceline.untrusted_json import read_object

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA_VERSION = 1
PREFIX = "sk-pl-"


class Permission(StrEnum):
    INFERENCE = "inference"
    """Models are listed, loaded and asked."""
    ADMIN = "admin"
    """Runtimes are installed, updated, selected, mended and removed, from what is set up here."""
    TRUST = "trust"
    """It is decided whose code comes here: registries are trusted, bundles brought, plugins installed."""


@dataclass(frozen=True)
class Token:
    """What is known of a token; not the token."""

    id: str
    name: str
    permissions: tuple[Permission, ...]
    sha256: str
    created_at: datetime


class Tokens:
    """The tokens of one home folder. A change counts from the next request on, in every server of this home."""

    def __init__(self, home: Path) -> None:
        self._store = Store(home)
        self.file = home / "tokens.json"
        self._read: tuple[tuple[int, int, int], tuple[Token, ...]] | None = None

    def all(self) -> tuple[Token, ...]:
        """Every token, oldest first. Raises StoreError for a file that is damaged."""
        try:
            stat = self.file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if self._read is None or self._read[0] != stamp:
                self._read = stamp, _from_json(read_object(self.file))
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"the tokens {self.file} cannot be read: {refusals.words(error)}",
                help=refusals.way_out(error, self.file)
                or "delete the file, which revokes them all, and create new ones with `paceline tokens create`",
            ) from None
        return self._read[1]

    def create(self, name: str, permissions: Iterable[Permission]) -> tuple[Token, str]:
        """A new token and its text, which cannot be had again."""
        id = secrets.token_hex(4)
        text = f"{PREFIX}{id}-{secrets.token_urlsafe(32)}"
        token = Token(
            id, name, tuple(sorted(set(permissions))), _digest(text), datetime.now(UTC).replace(microsecond=0)
        )
        with self._changing() as change:
            change(lambda tokens: (*tokens, token))
        return token, text

    def revoke(self, wanted: str) -> Token:
        """Forget the token with this id or name; returns what it was. Raises NotFoundError or AmbiguousError."""
        with self._changing() as change:
            found = [t for t in self.all() if t.id == wanted] or [t for t in self.all() if t.name == wanted]
            if not found:
                raise NotFoundError(f"no token has the id or name {wanted!r}", help="`paceline tokens ls` lists them")
            if len(found) > 1:
                ids = ", ".join(t.id for t in found)
                raise AmbiguousError(f"{len(found)} tokens are called {wanted!r}", help=f"give an id: {ids}")
            change(lambda tokens: tuple(t for t in tokens if t != found[0]))
        return found[0]

    def permissions_of(self, text: str) -> frozenset[Permission]:
        """What the bearer of `text` may do; nothing when it is no token of ours, or was revoked."""
        shaped = _SHAPE.fullmatch(text)
        token = next((t for t in self.all() if shaped and t.id == shaped[1]), None)
        if token is None or not hmac.compare_digest(token.sha256, _digest(text)):
            return frozenset()
        return frozenset(token.permissions)

    @contextmanager
    def _changing(self) -> Iterator[Callable[[Callable[[tuple[Token, ...]], tuple[Token, ...]]], None]]:
        from filelock import FileLock

        def change(how: Callable[[tuple[Token, ...]], tuple[Token, ...]]) -> None:
            transaction.write_json(self.file, _to_json(how(self.all())), private=True)

        path = self._store.lock_file("tokens")
        with transaction.explained("changing the tokens", self._store.home), FileLock(path):
            transaction.sweep_unfinished(self.file)
            yield change


_SHAPE = re.compile(rf"{PREFIX}([0-9a-f]{{8}})-[A-Za-z0-9_-]{{43}}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _from_json(data: dict[str, Any]) -> tuple[Token, ...]:
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version {data.get('schema_version')!r} is not {SCHEMA_VERSION}")
    return tuple(
        Token(
            id=str(entry["id"]),
            name=str(entry["name"]),
            permissions=tuple(Permission(p) for p in entry["permissions"]),
            sha256=str(entry["sha256"]),
            created_at=datetime.fromisoformat(entry["created_at"]),
        )
        for entry in data["tokens"]
    )


def _to_json(tokens: Iterable[Token]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tokens": [
            {
                "id": t.id,
                "name": t.name,
                "permissions": list(t.permissions),
                "sha256": t.sha256,
                "created_at": t.created_at.isoformat(),
            }
            for t in tokens
        ],
    }
