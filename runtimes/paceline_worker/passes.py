"""In how many passes over the weights a batch is computed, and which rows to add so that there are fewer.

llama.cpp computes lanes with caches of their own together only when they follow one another, and so many rows of each
as the shortest has (`llama_batch_allocr::split_equal` in its src/llama-batch.cpp); what is left is another pass, which
reads all weights again. So a lane that has nothing to compute between two that have, or prompts of almost the same
length, cost more than the few rows that would fill them up: rows whose state is forgotten again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

_ROWS_OF_A_PASS = 9
"""How many rows take as long as reading the weights does, unless it was measured (docs/decisions/batches-and-passes.md:
6 to 8 with two cores; more with a GPU)."""


def usual_seconds(rows: int, measured: tuple[int, float] = (1, 1.0)) -> float:
    """What a pass takes by what it took with so many rows; in any unit if nothing was `measured`."""
    known, seconds = measured
    return seconds * (_ROWS_OF_A_PASS + rows) / (_ROWS_OF_A_PASS + known)


def passes(rows: Mapping[int, int]) -> tuple[int, ...]:
    """The rows of each pass over a batch that has so many rows of each lane."""
    counts = set(rows.values())
    if len(counts) == 1 and 0 not in counts and max(rows) - min(rows) < len(rows):
        return (len(rows) * counts.pop(),)
    left = {lane: rows[lane] for lane in sorted(rows) if rows[lane]}
    found = []
    while left:
        run: list[int] = []
        for lane in left:
            if run and lane != run[-1] + 1:
                break
            run.append(lane)
        level = min(left[lane] for lane in run)
        found.append(level * len(run))
        for lane in run:
            left[lane] -= level
            if not left[lane]:
                del left[lane]
    return tuple(found)


def evened(
    rows: Mapping[int, int], rooms: Mapping[int, int], most: int, seconds: Callable[[int], float]
) -> dict[int, int]:
    """How many rows each lane should have so that the batch takes the least time: at least what it has.

    `rows`: what is to be computed, by lane; `rooms`: how many rows a lane could have, 0 or missing for one that must
    not be filled; `most`: rows of the whole batch; `seconds`: of a pass over so many rows. Prompts that differ little
    are made equal first, then gaps between lanes are closed; each only where it is estimated to save time.
    """
    best = dict(rows)
    if len(best) < 2:
        return best
    least = _total(best, seconds)

    def attempt(wanted: dict[int, int]) -> None:
        nonlocal best, least
        if all(count <= rooms.get(lane, 0) for lane, count in wanted.items()):
            tried = best | wanted
            if sum(tried.values()) <= most and (total := _total(tried, seconds)) < least:
                best, least = tried, total

    levels = sorted(set(rows.values()), reverse=True)
    for level in levels[1:]:
        above = min(count for count in best.values() if count > level)
        attempt({lane: above for lane, count in rows.items() if count == level})
    lanes = sorted(rows)
    for left, right in pairwise(lanes):
        if right - left > 1:
            attempt({lane: min(best[left], best[right]) for lane in range(left + 1, right)})
    return best


def _total(rows: Mapping[int, int], seconds: Callable[[int], float]) -> float:
    return sum(map(seconds, passes(rows)))
