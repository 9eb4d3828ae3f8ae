"""What a step has room for: drafted tokens to verify, how much of prompts is read beside them, and of whose."""

from __future__ import annotations

from collections.abc import Sequence

_BESIDE = 128
"""Prompt tokens per step beside running generations, which wait no longer than these take."""

_FOR_THE_SHORTEST = 4
"""One part in so many goes first to a prompt with so many times less left than the oldest: it need not wait for it."""


def draft_room(outputs: int, decoding: int, prompts: int) -> int:
    """How many drafted tokens each of `decoding` sequences may verify when a step can have so many `outputs`.

    Each sequence needs one more for its last token, and each prompt that is being read may end in this step.
    """
    return (outputs - prompts) // decoding - 1 if decoding else 0


def reading_room(decoding: int, prompts: int, chunk: int) -> int:
    """How many prompt tokens to read in a step beside `decoding` generations, at most `chunk`.

    Where more wait for their first token than for their next, the few wait longer: many short prompts that came
    together are read in few passes, and begin together.
    """
    return min(chunk, _BESIDE * max(1, prompts // decoding)) if decoding else chunk


def share(needs: Sequence[int], room: int) -> list[int]:
    """How many tokens of each prompt to read now, at most `room` in all.

    `needs` are the tokens each still has, above 0, in the order the prompts came, in which they are read: dividing a
    step among all would end them all late. The oldest has at least three quarters, so none waits for ever.
    """
    shares = [0] * len(needs)
    if not needs:
        return shares
    left = room
    shortest = min(range(len(needs)), key=needs.__getitem__)
    if needs[shortest] * _FOR_THE_SHORTEST <= needs[0]:
        shares[shortest] = min(needs[shortest], room // _FOR_THE_SHORTEST)
        left -= shares[shortest]
    for i, need in enumerate(needs):
        more = min(need - shares[i], left)
        shares[i] += more
        left -= more
    return shares
