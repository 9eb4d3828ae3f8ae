"""The choice of tokens is the best there is: compared with trying every beginning of the drafts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.speculation.price import Price

STEPS = st.lists(st.floats(0, 2), min_size=40, max_size=40)
CHANCES = st.lists(st.floats(0, 1), max_size=12)
RATE = st.floats(0.1, 3)


def price(steps, occupancy, rate, draft_step=0.1, run=0.7):
    table = [0.0]
    for step in steps:
        table.append(table[-1] + step)
    return Price(table, occupancy, rate, draft_step, run), table


def falling(chances):
    """Survivals of a draft: every token needs the ones before it."""
    survivals, survival = [], 1.0
    for chance in chances:
        survival *= chance
        survivals.append(survival)
    return survivals


@given(STEPS, st.integers(1, 4), RATE, CHANCES)
def test_a_draft_is_worth_its_best_beginning(steps, occupancy, rate, chances):
    prices, table = price(steps, occupancy, rate)
    survivals = falling(chances)
    every = [sum(survivals[:k]) - rate * (table[occupancy + k] - table[occupancy]) for k in range(len(survivals) + 1)]
    assert prices.worth(survivals) == pytest.approx(max(every), abs=1e-9)


@given(STEPS, RATE, st.lists(CHANCES, min_size=2, max_size=3), st.floats(0, 0.5))
def test_of_several_drafts_the_best_beginnings_are_taken(steps, rate, drafts, depth):
    occupancy = len(drafts)
    prices, table = price(steps, occupancy, rate)
    bids = sorted((-s, 0, i) for i, draft in enumerate(drafts) for s in falling(draft))
    gains = [0.0]
    for bid in bids:
        gains.append(gains[-1] - bid[0])
    every = [gain - rate * (table[occupancy + m] - table[occupancy]) for m, gain in enumerate(gains)]
    taken = prices.take(bids, occupancy, depth)
    if taken:
        assert every[taken] == pytest.approx(max(every), abs=1e-9)
        assert every[taken] > depth
    else:
        assert max(every) <= depth + 1e-9


def test_a_draft_step_is_paid_once_for_all_seats():
    prices, _ = price([0.0] * 40, 2, 1.0, draft_step=0.5)
    assert prices.take([(-0.4, 1, 0), (-0.3, 1, 1)], 2) == 2
    assert prices.take([(-0.4, 1, 0), (-0.3, 2, 0)], 2) == 0


@given(STEPS, RATE, st.floats(0, 1), st.integers(0, 16), st.floats(0, 1))
def test_it_goes_on_only_where_some_number_of_tokens_pays(steps, rate, expected, room, depth):
    prices, table = price(steps, 1, rate, draft_step=0.05, run=0.7)
    surpluses = [
        expected * sum(0.7**i for i in range(m)) - m * rate * 0.05 - rate * (table[3 + m] - table[3])
        for m in range(1, room + 1)
    ]
    if prices.goes_on(3, expected, room, depth):
        assert max(surpluses) > depth - 1e-9
    elif room <= 8:  # up to there every number is looked at
        assert max(surpluses, default=0.0) <= depth + 1e-9
