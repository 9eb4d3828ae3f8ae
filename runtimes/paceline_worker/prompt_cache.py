"""What lanes had to give up, kept in the machine's memory as long as a bound allows.

With fewer lanes than conversations each turn would find that another has taken its lane, and be read anew. A copy of
the state costs no more than moving the bytes there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline_worker.options import Options

OPTION = "prompt_cache_bytes"
"""The load option of a main model that bounds it."""

DEFAULT_LIMIT = 2**30
_MOST = 2**53


def read_limit(options: Options) -> int:
    """The bound that a load asks for."""
    limit = options.whole(OPTION, least=0, most=_MOST)
    return DEFAULT_LIMIT if limit is None else limit


@dataclass(frozen=True, eq=False)
class Entry:
    """The state of one sequence."""

    owner: object
    """The lanes it was taken from: another model's are of no use there."""
    tokens: Sequence[int]
    state: Any
    saved: Sequence[tuple[int, Any]]
    """States on the way, and how many tokens each held."""
    size: int
    """Bytes of all its states."""


class PromptCache:
    """States of sequences, of at most `limit` bytes together; the least recently used go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: list[Entry] = []

    @property
    def size(self) -> int:
        """Bytes that are kept now."""
        return sum(entry.size for entry in self._entries)

    def of(self, owner: object) -> list[Entry]:
        """What is kept of the lanes `owner`, the least recently used first."""
        return [entry for entry in self._entries if entry.owner is owner]

    def put(self, owner: object, tokens: Sequence[int], size: int, make: Callable[[], Entry]) -> None:
        """Keep what `make` gives, of `size` bytes, unless it is too large or what is kept already begins with it.

        Room is made before, so that the bound holds also while it is copied.
        """
        if size > self.limit:
            return
        for entry in self.of(owner):
            if entry.tokens[: len(tokens)] == tokens:
                self.touch(entry)
                return
            if tokens[: len(entry.tokens)] == entry.tokens:
                self._entries.remove(entry)
        while self.size + size > self.limit:
            del self._entries[0]
        self._entries.append(make())

    def touch(self, entry: Entry) -> None:
        """It was used just now."""
        self._entries.remove(entry)
        self._entries.append(entry)

    def remove(self, entry: Entry) -> None:
        """It is somewhere else now."""
        self._entries.remove(entry)

    def forget(self, owner: object) -> None:
        """These lanes are gone."""
        self._entries = [entry for entry in self._entries if entry.owner is not owner]
