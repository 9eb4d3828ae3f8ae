"""What a step has room for: drafted tokens to verify, and whose prompt is read when only so many tokens fit."""

from __future__ import annotations

from collections.abc import Sequence

_FOR_THE_SHORTEST = 4
"""One part in so many goes first to the prompt with the least left: it need not wait for long ones before it."""


def draft_room(outputs: int, decoding: int, prompts: int) -> int:
    """How many drafted tokens each of `decoding` sequences may verify when a step can have so many `outputs`.

    Each sequence needs one more for its last token, and each prompt that is being read may end in this step.
    """
    return (outputs - prompts) // decoding - 1 if decoding else 0


def share(needs: Sequence[int], room: int) -> list[int]:
    """How many tokens of each prompt to read now, at most `room` in all.

    `needs` are the tokens each still has, above 0, in the order the prompts came, in which they are read: dividing a
    step among all would end them all late. The oldest has at least three quarters, so none waits for ever.
    """
    shares = [0] * len(needs)
    if not needs:
        return shares
    shortest = min(range(len(needs)), key=needs.__getitem__)
    shares[shortest] = min(needs[shortest], room // _FOR_THE_SHORTEST)
    left = room - shares[shortest]
    for i, need in enumerate(needs):
        more = min(need - shares[i], left)
        shares[i] += more
        left -= more
    return shares
