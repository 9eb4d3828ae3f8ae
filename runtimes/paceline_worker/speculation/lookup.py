"""Prompt lookup: what followed the last time the context said this (Saxena 2023, "Prompt Lookup Decoding").

The index maps the last few tokens to the place where they stood before. It grows with the sequence, one constant piece
of work per token, and forgets its oldest entries when it is full.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 6
"""Tokens of context that a match is measured over."""
_MOST_ENTRIES = 1 << 16
_CONFIDENCE = (0.0, 0.0, 0.25, 0.45, 0.65, 0.85, 0.96)
"""By matching tokens. These only order the classes of matches: the calibration learns what each is worth."""


class Lookup:
    """Proposes the continuation of the latest earlier occurrence of the context's last two or more tokens."""

    def __init__(self, tokens: Sequence[int] = (), *, most_entries: int = _MOST_ENTRIES) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, int], int] = {}
        self._most = max(most_entries, 2)
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def entries(self) -> int:
        return len(self._after)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens of the sequence, prompt or output."""
        known, after = self._tokens, self._after
        for token in tokens:
            # The pair before this token becomes known only now that something followed it.
            if len(known) >= 2:
                pair = (known[-2], known[-1])
                after.pop(pair, None)  # again as the youngest entry
                after[pair] = len(known)
                if len(after) > self._most:
                    del after[next(iter(after))]
            known.append(token)

    def propose(self, limit: int) -> tuple[list[int], float]:
        """At most `limit` tokens that may come next, and a confidence that holds for each; none is `([], 0.0)`."""
        tokens = self._tokens
        if limit < 1 or len(tokens) < 2:
            return [], 0.0
        at = self._after.get((tokens[-2], tokens[-1]))
        if at is None:
            return [], 0.0
        matching = 2
        while matching < LONGEST and matching < at and tokens[at - 1 - matching] == tokens[-1 - matching]:
            matching += 1
        found = tokens[at : at + limit]
        period = len(tokens) - at
        while len(found) < limit:  # a loop: it goes on where it began
            found.append(found[-period])
        return found, _CONFIDENCE[matching]
