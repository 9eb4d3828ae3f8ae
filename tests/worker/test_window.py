"""What is dropped when a sequence outgrows its context."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.window import Overflow, Window

rolling = [Overflow.ROLLING_WINDOW, Overflow.TRUNCATE_MIDDLE]
sizes = st.integers(8, 10_000)


def test_to_stop_at_the_limit_needs_no_window():
    assert Window.of(Overflow.STOP_AT_LIMIT, 100, 1) is None


@given(st.sampled_from(rolling), sizes, st.integers(0, 20_000))
def test_the_beginning_stays_and_the_rest_goes_in_whole_steps(overflow, size, keep):
    window = Window.of(overflow, size, keep)
    assert min(keep, size // 2) <= window.keep < size
    assert window.step > 0
    assert (window.size - window.keep) % window.step == 0


@given(sizes)
def test_truncating_the_middle_keeps_more_of_the_beginning(size):
    assert Window.of(Overflow.TRUNCATE_MIDDLE, size, 1).keep >= size // 4
    assert Window.of(Overflow.ROLLING_WINDOW, size, 1).keep <= 5


@given(
    st.sampled_from(rolling), sizes, st.integers(0, 100), st.integers(1, 100_000), st.none() | st.integers(1, 10_000)
)
def test_a_cut_prompt_keeps_its_beginning_its_end_and_room_for_an_answer(overflow, size, keep, prompt, max_tokens):
    window = Window.of(overflow, size, keep)
    excess = window.excess(prompt, max_tokens)
    left = prompt - excess
    if prompt < size:
        assert excess == 0
    else:
        assert window.keep + window.step <= left < size
        assert excess % window.step == 0


@pytest.mark.parametrize("overflow", rolling)
def test_growing_by_a_few_tokens_a_prompt_loses_the_same_ones(overflow):
    window = Window.of(overflow, 1000, 10)
    losses = [window.excess(prompt, None) for prompt in range(1000, 3000)]
    assert losses == sorted(losses)
    assert len(set(losses)) <= 2000 // window.step + 2
