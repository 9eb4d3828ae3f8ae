"""A cost curve finds plateaus under noise, shrugs off outliers and follows a machine that changes."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.speculation.costs import CostCurve, Costs


def true_cost(n):
    return 1.0 if n == 1 else 1.6 if n <= 4 else 2.0 if n <= 8 else 3.5


def learned(cost, observations=3000, *, seed=1, spike=0.0):
    curve, rng = CostCurve(), random.Random(seed)
    for _ in range(observations):
        n = rng.choice((1, 1, 2, 3, 4, 5, 6, 8, 12))
        curve.observe(n, cost(n) * rng.uniform(0.7, 1.3) * (10 if rng.random() < spike else 1))
    return curve


@pytest.mark.parametrize("spike", [0.0, 0.02])
def test_a_stepped_curve_is_found_in_noise(spike):
    curve = learned(true_cost, spike=spike)
    for n in (1, 2, 4, 5, 8, 12):
        assert curve.at(n) == pytest.approx(true_cost(n), rel=0.12)


def test_it_follows_a_machine_that_slows_down():
    curve = learned(true_cost)
    for i in range(200):
        curve.observe((1, 4, 8)[i % 3], 3 * true_cost((1, 4, 8)[i % 3]))
    assert curve.at(1) == pytest.approx(3, rel=0.1)
    assert curve.at(8) == pytest.approx(6, rel=0.1)


@given(st.lists(st.tuples(st.integers(-2, 40), st.floats()), max_size=60))
def test_whatever_is_observed_the_curve_is_finite_and_never_falls(observations):
    curve = CostCurve()
    for n, seconds in observations:
        curve.observe(n, seconds)
    table = curve.table(50)
    assert all(math.isfinite(value) and value >= 0 for value in table)
    assert all(b >= a * (1 - 1e-9) for a, b in itertools.pairwise(table))
    assert curve.known == any(n >= 1 and 0 < seconds < math.inf for n, seconds in observations)


def test_a_size_that_was_not_seen_for_long_is_forgotten():
    curve = CostCurve()
    curve.observe(8, 50.0)
    for _ in range(2300):
        curve.observe(1, 1.0)
    assert curve.count(8) == 0
    assert curve.at(8) < 2


def test_rows_cost_the_same_whosever_they_are_and_several_passes_are_told_apart():
    costs = Costs()
    for _ in range(20):
        costs.observe_verify(1.0, (1,))
        costs.observe_verify(3.0, (8,))
    assert costs.verify.at(8) == pytest.approx(3, rel=0.05)
    assert costs.verify.spans(5)
    assert not costs.verify.spans(9)
    for _ in range(200):
        costs.observe_verify(8.0, (8, 1))
    assert costs.verify.at(8) == pytest.approx(6, rel=0.05)
    assert costs.verify.at(1) == pytest.approx(2, rel=0.05)


def test_reading_what_was_missed_is_not_taken_for_a_draft_step():
    costs = Costs()
    for _ in range(5):
        costs.observe_draft(0.030, steps=3)
    costs.observe_draft(1.030, steps=3, lag=1000)
    assert costs.draft_step() == pytest.approx(0.010, rel=0.1)
    assert costs.draft_read(1000) == pytest.approx(1.0, rel=0.1)


def test_a_first_reading_that_paid_for_warming_up_is_corrected_by_the_next():
    costs = Costs()
    costs.observe_draft(0.100, steps=3, lag=300)
    for _ in range(5):
        costs.observe_draft(0.003, steps=3)
    assert costs.draft_read(100) > 0.03
    costs.observe_draft(0.018, steps=3, lag=300)
    assert costs.draft_read(100) == pytest.approx(0.005, rel=0.1)
