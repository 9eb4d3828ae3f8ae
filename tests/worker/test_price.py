"""The choice of tokens is the best there is: compared with trying every length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.speculation.price import Price

STEPS = st.lists(st.floats(0, 2), min_size=80, max_size=80)
CHANCES = st.lists(st.floats(0, 1), max_size=12)
RATE = st.floats(0.1, 3)


def price(steps, occupancy, rate, draft_step=0.1, run=0.7):
    table = [0.0]
    for step in steps:
        table.append(table[-1] + step)
    return Price(table, (occupancy,), occupancy, rate, draft_step, run), table


def falling(chances):
    """Survivals of a draft: every token needs the ones before it."""
    survivals, survival = [], 1.0
    for chance in chances:
        survival *= chance
        survivals.append(survival)
    return survivals


@given(STEPS, st.integers(1, 4), RATE, CHANCES)
def test_a_draft_is_worth_its_best_beginning_if_all_verify_as_many(steps, occupancy, rate, chances):
    prices, table = price(steps, occupancy, rate)
    survivals = falling(chances)
    every = [
        sum(survivals[:k]) - rate * (table[occupancy * (1 + k)] - table[occupancy]) / occupancy
        for k in range(len(survivals) + 1)
    ]
    assert prices.worth(survivals) == pytest.approx(max(every), abs=1e-9)


@given(STEPS, RATE, CHANCES)
def test_what_is_verified_apart_is_worth_a_pass_of_its_own(steps, rate, chances):
    prices, table = price(steps, 4, rate)
    survivals = falling(chances)
    every = [0.0, *(sum(survivals[:k]) - rate * table[k] for k in range(1, len(survivals) + 1))]
    assert every[prices.alone(survivals)] == pytest.approx(max(every), abs=1e-9)


@given(STEPS, st.lists(st.integers(0, 15), min_size=1, max_size=4))
def test_every_row_is_computed_and_filling_up_is_never_dearer(steps, drafted):
    prices, table = price(steps, len(drafted), 1.0)
    passes = prices.passes(drafted)
    even = len(drafted) * (1 + max(drafted))
    assert sum(passes) == (even if len(passes) == 1 else len(drafted) + sum(drafted))
    assert prices.seconds(passes) <= table[even] + 1e-9


def test_a_lone_long_draft_is_computed_apart_where_filling_up_is_dear():
    prices, _ = price([1.0] + [0.3] * 79, 8, 1.0)
    assert prices.passes([0, 0, 2, 0, 0, 0, 0, 0]) == (8, 2)
    assert prices.passes([2, 2, 2, 2, 2, 2, 2, 1]) == (24,)


@given(STEPS, st.integers(1, 4), RATE, st.floats(0, 4), st.integers(0, 12), st.floats(0, 1))
def test_it_goes_on_only_where_some_number_of_tokens_pays(steps, occupancy, rate, expected, room, short):
    prices, table = price(steps, occupancy, rate, draft_step=0.05, run=0.7)
    rows = 3 * occupancy
    surpluses = [
        expected * sum(0.7**i for i in range(m)) - m * rate * 0.05 - rate * (table[rows + m * occupancy] - table[rows])
        for m in range(1, room + 1)
    ]
    if prices.goes_on(2, expected, room, short):
        assert max(surpluses) > short - 1e-9
    elif room <= 8:  # up to there every number is looked at
        assert max(surpluses, default=0.0) <= short + 1e-9
