"""Prompt lookup proposes what followed before, in bounded memory."""

import time

from hypothesis import given
from hypothesis import strategies as st

from paceline_worker.speculation.lookup import Lookup

TOKENS = st.lists(st.integers(0, 4), max_size=60)


def test_what_followed_the_latest_occurrence_is_proposed():
    assert Lookup([1, 2, 3, 4, 9, 1, 2, 7, 8, 1, 2]).propose(3)[0] == [7, 8, 1]
    assert Lookup([1, 2, 3]).propose(4) == ([], 0.0)


def test_a_loop_goes_on():
    assert Lookup([5, 6, 7, 5, 6]).propose(7)[0] == [7, 5, 6, 7, 5, 6, 7]


def test_a_longer_match_is_surer():
    short, long = Lookup([1, 2, 3, 9, 8, 1, 2]), Lookup([7, 6, 1, 2, 3, 9, 7, 6, 1, 2])
    assert short.propose(1)[0] == long.propose(1)[0] == [3]
    assert short.propose(1)[1] < long.propose(1)[1]


@given(TOKENS, st.integers(0, 20))
def test_it_finds_the_latest_earlier_pair_as_a_scan_does(tokens, limit):
    found, confidence = Lookup(tokens).propose(limit)
    places = [i for i in range(len(tokens) - 2) if tokens[i : i + 2] == tokens[-2:]]
    assert bool(found) == (bool(places) and limit > 0)
    if found:
        assert len(found) == limit
        assert found[0] == tokens[places[-1] + 2]
        assert 0 < confidence < 1


@given(TOKENS, st.integers(0, 60))
def test_token_by_token_is_the_same_as_at_once(tokens, cut):
    grown = Lookup(tokens[:cut])
    for token in tokens[cut:]:
        grown.extend([token])
    assert grown.propose(8) == Lookup(tokens).propose(8)
    assert len(grown) == len(tokens)


def test_the_index_is_bounded():
    lookup = Lookup(range(5000), most_entries=100)
    assert lookup.entries == 100
    lookup.extend([0, 1])
    assert lookup.propose(1)[0] == []
    started = time.perf_counter()
    lookup.extend(range(20000))
    assert lookup.entries == 100
    assert time.perf_counter() - started < 5, "a constant piece of work per token"
