"""What each token adds to the output, asked of the engine once."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Pieces(ABC):
    """A vocabulary that remembers the bytes of the tokens it was asked for."""

    def __init__(self) -> None:
        self._pieces: dict[int, bytes] = {}

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the output; control tokens add none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self.spell(token, special=False)
        return known

    @abstractmethod
    def spell(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token, control tokens written out if `special`."""
