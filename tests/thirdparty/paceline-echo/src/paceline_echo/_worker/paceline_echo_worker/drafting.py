"""Guessing ahead: a draft model's way, and prompt lookup's; and what became of the guesses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from paceline_echo_worker.model import Echo

MOST_MATCHED = 6


def guess(draft: Echo, position: int, length: int, choose: Callable[[int], int], size: int, end: int) -> list[int]:
    """A draft model's run of tokens: right, but for every `wrong_every`-th position of the output."""
    proposed: list[int] = []
    while len(proposed) < length and end not in proposed[-1:]:
        at = position + len(proposed)
        token = choose(at)
        wrong = draft.wrong_every is not None and (at + 1) % draft.wrong_every == 0
        proposed.append(token % (size - 1) + 1 if wrong else token)
    return proposed


def look_up(tokens: list[int], length: int) -> list[int]:
    """What followed the last tokens when they came before: as many of them as can be found, the last time they did."""
    for size in range(min(MOST_MATCHED, len(tokens) - 1), 1, -1):
        wanted = tokens[-size:]
        for at in range(len(tokens) - size - 1, -1, -1):
            if tokens[at : at + size] == wanted:
                return tokens[at + size : at + size + length]
    return []


@dataclass
class Record:
    """The acceptance record, of all guesses and of those of prompt lookup."""

    ignored: int = 0
    rounds: int = 0
    verified: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    lookup_drafted: int = 0
    lookup_accepted: int = 0

    def verify(self, position: int, *, right: bool, looked_up: bool) -> None:
        _count(self.verified, position)
        if right:
            _count(self.accepted, position)
            self.lookup_accepted += looked_up

    def frame(self) -> dict[str, Any]:
        accepted, verified = sum(self.accepted), sum(self.verified)
        return {
            "drafted": verified + self.ignored,
            "accepted": accepted,
            "rejected": verified - accepted,
            "ignored": self.ignored,
            "rounds": self.rounds,
            "drafted_per_position": self.verified,
            "accepted_per_position": self.accepted,
            "lookup": {"drafted": self.lookup_drafted, "accepted": self.lookup_accepted},
        }


def _count(counts: list[int], position: int) -> None:
    counts.extend([0] * (position + 1 - len(counts)))
    counts[position] += 1
