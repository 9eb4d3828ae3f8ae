"""To how many rows a pass is filled up, by what passes took. The times are those of a 1 B model on two cores of an EPYC
processor with AVX-512, milliseconds (docs/decisions/batches-and-passes.md)."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.widths import Widths

GROUPED_BY_4 = {  # Q8_0
    **{8: 91.0, 9: 119.3, 10: 128.0, 11: 133.8, 12: 111.8, 13: 144.7, 14: 148.0, 15: 153.8, 16: 139.5, 17: 170.5},
    **{18: 176.7, 19: 181.7, 20: 163.4, 21: 197.7, 22: 200.3, 23: 210.9, 24: 197.5, 25: 227.3, 26: 236.0, 27: 236.5},
    **{28: 217.5, 29: 249.7, 30: 259.1, 31: 262.7, 32: 243.5, 33: 279.0},
}
GROUPED_BY_16 = {  # Q4_K_M
    **{8: 66.7, 9: 75.0, 10: 79.7, 11: 85.1, 12: 82.3, 13: 89.6, 14: 97.4, 15: 106.8, 16: 79.4, 17: 99.3, 18: 102.1},
    **{19: 108.7, 20: 107.7, 21: 113.6, 22: 121.6, 23: 128.2, 24: 126.9, 25: 138.4, 26: 141.2, 27: 147.9, 28: 148.0},
    **{29: 152.6, 30: 161.2, 31: 166.5, 32: 147.6, 33: 162.4},
}
UNGROUPED = {  # F16
    **{8: 94.7, 9: 91.9, 10: 101.6, 11: 94.7, 12: 110.7, 13: 112.5, 14: 115.1, 15: 125.3, 16: 121.2, 17: 128.1},
    **{18: 139.9, 19: 138.4, 20: 150.0, 21: 146.8, 22: 153.7, 23: 151.1, 24: 165.6, 25: 174.8, 26: 170.0, 27: 181.9},
    **{28: 182.5, 29: 180.0, 30: 192.0, 31: 192.8, 32: 204.9, 33: 206.7},
}


def ride(times, seed, passes=60, *, noise=0.04, widest=33):
    """Seconds of the first 15 passes, and of the others, over what they would have taken as they were."""
    chance, widths = random.Random(seed), Widths()
    mine, plain = [], []
    for i in range(passes):
        rows = chance.randint(8, 33)
        made = widths.best(rows, 1, widest)
        assert rows <= made <= widest
        mine.append(times[made])
        plain.append(times[rows])
        slow = 1.1 if i % 30 > 15 else 1.0  # the machine drifts
        widths.observe(made, times[made] / 1e3 * slow * chance.gauss(1.0, noise))
    return sum(mine[:15]) / sum(plain[:15]), sum(mine[15:]) / sum(plain[15:])


@pytest.mark.parametrize(("times", "best"), [(GROUPED_BY_4, 0.975), (GROUPED_BY_16, 0.985), (UNGROUPED, 1.0)])
def test_what_pays_is_learned_and_learning_costs_next_to_nothing(times, best):
    rides = [ride(times, seed) for seed in range(20)]
    assert max(early for early, _ in rides) < 1.015
    assert max(late for _, late in rides) < 1.015
    assert sum(late for _, late in rides) / len(rides) <= best + 1e-9


def test_a_machine_that_changes_is_learned_anew():
    widths = Widths()
    for rows in list(GROUPED_BY_4) * 3:
        widths.observe(rows, GROUPED_BY_4[rows] / 1e3)
    assert widths.best(18, 1, 100) == 20
    for rows in list(UNGROUPED) * 5:
        widths.observe(rows, UNGROUPED[rows] / 1e3)
    assert widths.best(18, 1, 100) == 18


def test_rows_of_several_lanes_grow_together_and_no_further_than_there_is_room():
    widths = Widths()
    for rows in list(GROUPED_BY_4) * 3:
        widths.observe(rows, GROUPED_BY_4[rows] / 1e3)
    assert widths.best(22, 2, 100) == 24
    assert widths.best(22, 4, 100) == 22
    assert widths.best(18, 1, 19) == 18
    assert widths.best(20, 1, 100) == 20


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_what_no_clock_can_have_measured_teaches_nothing(seconds):
    widths = Widths()
    widths.observe(20, seconds)
    assert widths.best(18, 1, 100) == 18
    widths.observe(20, 0.1)
    assert widths.best(18, 1, 100) == 18


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-9, 1e9) | st.floats(0.5, 2.0)), max_size=40))
def test_no_times_are_too_wild(passes):
    widths = Widths()
    for rows, seconds in passes:
        widths.observe(rows, seconds)
        assert rows <= widths.best(rows, 1, rows + 20) <= rows + 16


@given(st.lists(st.integers(5, 64), min_size=30, max_size=60), st.floats(1e-7, 10.0), st.floats(2.0, 1000.0))
def test_a_slow_first_pass_and_a_slow_machine_are_no_obstacle(sizes, row, slower):
    widths = Widths()
    widths.observe(20, slower * row * 30)
    for rows in sizes:
        widths.observe(rows, row * (9 + rows + (6 if rows % 4 else 0)))
    if len({rows % 4 for rows in sizes}) == 4:
        assert widths.best(18, 1, 100) in (18, 20)
        assert widths.best(20, 1, 100) == 20
