"""How often a token is accepted is learned for every confidence, from few observations and from any."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.speculation.calibration import CLASSES, Calibration, confidence_class


def chance(calibration, confidence):
    odds = calibration.odds[confidence_class(confidence)]
    return odds / (1 + odds)


def learned(truth, observations, seed=1):
    """A calibration after tokens of evenly spread confidence, accepted with the probability `truth(confidence)`."""
    rng, calibration = random.Random(seed), Calibration()
    for _ in range(observations):
        confidence = rng.random()
        calibration.observe(confidence_class(confidence), rng.random() < truth(confidence))
    return calibration


@pytest.mark.parametrize(
    "truth", [lambda c: c, lambda c: 0.3 + 0.6 * c, lambda c: 0.85, lambda c: c**3, lambda c: 1 - c]
)
def test_every_class_is_learned(truth):
    calibration = learned(truth, 4000)
    for confidence in (0.15, 0.35, 0.55, 0.75, 0.85):
        assert chance(calibration, confidence) == pytest.approx(truth(confidence), abs=0.1)


def test_what_was_seen_rarely_is_taken_for_what_the_others_say():
    calibration = learned(lambda c: 0.85, 300)
    assert min(chance(calibration, c) for c in (0.02, 0.07, 0.9993, 0.94)) > 0.65


@given(st.lists(st.tuples(st.integers(0, CLASSES - 1), st.booleans(), st.floats(0, 1)), max_size=400))
def test_whatever_is_observed_it_stays_a_probability(observations):
    calibration = Calibration()
    for cls, accepted, follows in observations:
        calibration.observe(cls, accepted)
        calibration.observe_next(cls, follows)
    assert all(0 < odds < 1e5 for odds in calibration.odds)
    assert all(0 <= p <= 1 for p in [*calibration.next, calibration.run])


def test_one_class_alone_is_learned_and_learned_again():
    calibration = Calibration()
    for rate in (0.9, 0.1, 0.9):
        rng = random.Random(3)
        for _ in range(3000):
            calibration.observe(5, rng.random() < rate)
        assert chance(calibration, 0.45) == pytest.approx(rate, abs=0.08)
