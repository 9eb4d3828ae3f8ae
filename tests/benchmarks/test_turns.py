"""What two contenders in turns tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def turns(bench: Callable[[str], ModuleType]) -> ModuleType:
    return bench("turns")


def test_the_median_of_many_pairs_lies_between_two_of_them(turns: ModuleType) -> None:
    found = turns.median_of([1.0 + i / 100 for i in range(11)])
    # The second lowest and highest of 11 enclose the true median with 98.8 %, the third with 93.5 %.
    assert (found.value, found.low, found.high) == (1.05, 1.01, 1.09)


def test_few_pairs_bound_nothing(turns: ModuleType) -> None:
    found = turns.median_of([0.9, 1.0, 1.2])
    assert (found.value, found.low, found.high) == (1.0, 0.0, math.inf)


def test_a_figure_is_of_all_answers_of_a_run(turns: ModuleType, bench: Callable[[str], ModuleType]) -> None:
    client = bench("client")
    run = client.Run(4.0, (client.Answer((1.0, 2.0), 3.0, "ab", 5), client.Answer((2.0,), 4.0, "c", 3)))
    assert (turns.speed(run), turns.first_token(run), turns.token_time(run)) == (2.0, 1.5, (2.0 + 2.0) / (4 + 2))


def test_a_table_holds_the_ratios_within_pairs(turns: ModuleType, bench: Callable[[str], ModuleType]) -> None:
    client = bench("client")

    def run(wall: float) -> object:
        return client.Run(wall, (client.Answer((wall / 2,), wall, "ab", 5),))

    pairs = [turns.Pair((run(1.0 * drift), run(2.0 * drift)), 0.0) for drift in (1.0, 1.5, 3.0, 2.0, 1.0, 1.0)]
    text = turns.table(pairs, ["mine", "theirs"])
    assert "| mine over theirs | median | between | pairs |" in text
    assert "| tokens/s | 2.000x | 2.000 and 2.000 | 6 |" in text
    assert "| first token | 0.500x | 0.500 and 0.500 | 6 |" in text
