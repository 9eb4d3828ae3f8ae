"""A batch takes the passes that llama.cpp makes of it, and is filled up only where that saves time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.passes import evened, passes, usual_seconds

ROWS = st.dictionaries(st.integers(0, 15), st.integers(1, 40), min_size=1)
ROOMS = st.dictionaries(st.integers(0, 15), st.integers(0, 60))
FREE = dict.fromkeys(range(16), 1000)


def seconds(rows):
    return sum(map(usual_seconds, passes(rows)))


@pytest.mark.parametrize(
    ("rows", "made"),
    [
        ([1, 1, 1, 1], (4,)),
        ([1, 1, 0, 1], (2, 1)),  # an idle lane between two that are not
        ([3, 3, 1, 1], (4, 4)),
        ([1, 3, 1, 3], (4, 2, 2)),
        ([2, 5, 7], (6, 6, 2)),
        ([0, 0, 0, 9], (9,)),
    ],
)
def test_lanes_are_computed_together_that_follow_one_another_as_far_as_they_are_equally_long(rows, made):
    assert passes(dict(enumerate(rows))) == made


@given(ROWS)
def test_every_row_is_in_one_pass(rows):
    assert sum(passes(rows)) == sum(rows.values())


@given(ROWS, ROOMS, st.integers(0, 700))
def test_filling_up_takes_nothing_away_keeps_to_the_room_and_is_never_slower(rows, rooms, most):
    filled = evened(rows, rooms, most, usual_seconds)
    assert seconds(filled) <= seconds(rows)
    for lane, count in filled.items():
        assert count == rows.get(lane, 0) or rows.get(lane, 0) < count <= rooms[lane]
    assert filled == rows or sum(filled.values()) <= most


def test_a_gap_is_closed_where_that_is_cheaper_than_another_pass():
    eight = dict.fromkeys((0, 1, 2, 4, 5, 6, 7), 1)
    assert evened(eight, FREE, 512, usual_seconds) == eight | {3: 1}
    assert evened(eight, FREE | {3: 0}, 512, usual_seconds) == eight
    far = {0: 1, 15: 1}
    assert evened(far, FREE, 512, usual_seconds) == far


def test_prompts_of_almost_the_same_length_become_equal_and_no_answer_is_filled_up_to_a_prompt():
    assert evened({0: 30, 1: 28, 2: 29, 3: 30}, FREE, 512, usual_seconds) == dict.fromkeys(range(4), 30)
    mixed = {0: 1, 1: 1, 2: 30, 3: 30}
    assert evened(mixed, FREE, 512, usual_seconds) == mixed


def test_what_was_measured_sets_the_scale():
    assert usual_seconds(8, (8, 0.18)) == 0.18
    assert 0.18 < usual_seconds(16, (8, 0.18)) < 0.36
