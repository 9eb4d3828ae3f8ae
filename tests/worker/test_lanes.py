"""Which lane a generation takes, and what of its prompt is there: what a conversation will need is not lost early."""

import pytest

from paceline_worker.lanes import Lanes
from paceline_worker.prompt_cache import PromptCache

TEMPLATE = [1, 2, 3, 4]
"""What every chat begins with."""


class Batch:
    left = 10_000

    def __init__(self):
        self.rows = []

    @property
    def size(self):
        return len(self.rows)

    def clear(self):
        self.rows = []

    def add(self, lane, tokens, start, /, *, outputs):
        self.rows += [(lane, token) for token in tokens]
        return len(self.rows) - outputs


class Cells:
    """A context that holds in each lane the tokens it was given; a `recurrent` one forgets all or nothing."""

    wants_even = False
    is_changing = False

    def __init__(self, count, *, recurrent=False, near=False):
        self.state_is_near = near
        self.batch, self.can_roll_back = Batch(), not recurrent
        self.lanes = [[] for _ in range(count)]
        self.copies = []

    def decode(self):
        for lane, token in self.batch.rows:
            self.lanes[lane].append(token)

    def keep(self, lane, length, /):
        if not self.can_roll_back and length < len(self.lanes[lane]):
            return False
        del self.lanes[lane][length:]
        return True

    def shift(self, lane, start, count, /):
        del self.lanes[lane][start : start + count]
        return True

    def checkpoint(self, lane, /):
        return list(self.lanes[lane])

    def go_back(self, lane, length, state, /):
        self.lanes[lane] = state[:length]

    def forget(self, lane, /):
        self.lanes[lane] = []

    def copy(self, source, target, /):
        assert not self.lanes[target]
        self.lanes[target] = list(self.lanes[source])
        self.copies.append((source, target))

    def state_size(self, lane, /):
        return len(self.lanes[lane])

    def state(self, lane, /):
        return list(self.lanes[lane])

    def restore(self, lane, state, /):
        assert not self.lanes[lane]
        self.lanes[lane] = list(state)
        return True

    def close(self):
        pass


class World:
    """Lanes over such a context, and conversations that take turns on them."""

    def __init__(self, count=5, *, kept=0, **kind):
        self.context, self.cache = Cells(count, **kind), PromptCache(kept)
        self.lanes = Lanes(self.context, None, count, 8, self.cache)

    def begin(self, prompt):
        """Read a prompt; returns its lane and how much was there."""
        lane, cached = self.lanes.take(prompt)
        assert self.context.lanes[lane] == list(prompt[:cached])
        assert self.cache.size <= self.cache.limit
        self.read(lane, prompt[cached:], rest=self.lanes.resting_point(len(prompt)))
        return lane, cached

    def read(self, lane, tokens, *, rest=None):
        for token in tokens:
            self.lanes.begin()
            self.lanes.add(lane, [token], outputs=0)
            self.lanes.decode()
            if self.lanes.length(lane) == rest:
                self.lanes.remember(lane)

    def turn(self, prompt, answer=()):
        """A whole generation, alone."""
        lane, cached = self.begin(prompt)
        self.read(lane, answer)
        self.lanes.release(lane)
        return lane, cached


def talk(name, length=300):
    """A conversation so far, which has nothing but the template in common with others."""
    return [*TEMPLATE, *((name, i) for i in range(length))]


def test_conversations_in_turn_keep_a_lane_each():
    world = World()
    assert [world.turn(talk(name)) for name in "abc"] == [(0, 0), (1, 0), (2, 0)]
    for length in (350, 400, 500):
        before = {350: 304, 400: 354, 500: 404}[length]
        assert [world.turn(talk(name, length)) for name in "abc"] == [(lane, before) for lane in range(3)]
    assert world.context.lanes[3:] == [[], []]


def test_when_no_lane_is_empty_the_longest_unused_goes():
    world = World(3)
    for name in "abc":
        world.turn(talk(name))
    world.turn(talk("a", 310))
    assert world.turn(talk("d")) == (1, len(TEMPLATE))
    assert world.turn(talk("e")) == (2, len(TEMPLATE))
    assert world.turn(talk("a", 320)) == (0, 314)
    assert world.turn(talk("b")) == (1, len(TEMPLATE))


def test_a_turn_that_ends_otherwise_than_it_was_written_goes_on_where_it_was():
    world = World()
    world.turn(talk("a"), answer=["end", "of", "turn"])
    assert world.turn(talk("a", 340)) == (0, 304)


def test_a_long_beginning_is_copied_and_the_conversation_that_had_it_loses_nothing():
    world = World()
    system = [*TEMPLATE, *range(100, 200)]
    world.turn([*system, *"first"], answer=range(1000, 1200))
    assert world.turn([*system, *"other"], answer=range(2000, 2200)) == (1, len(system))
    assert world.context.copies == [(0, 1)]
    assert world.turn([*system, *"first", *range(1000, 1200), "more"]) == (0, len(system) + 5 + 200)
    assert world.turn([*system, *"other", *range(2000, 2200), "more"]) == (1, len(system) + 5 + 200)


def test_a_short_beginning_is_read_rather_than_copied():
    world = World()
    world.turn([*range(60), *"first"], answer=range(1000, 1200))
    assert world.turn([*range(60), *"other"]) == (1, 0)
    assert world.context.copies == []


def test_where_state_is_near_a_short_beginning_is_moved():
    world = World(near=True)
    world.turn([*range(9), *"first"], answer=range(1000, 1050))
    assert world.turn([*range(9), *"other"], answer=range(2000, 2050)) == (1, 9)
    assert world.turn([*range(9), *"third"]) == (2, 9)
    assert world.context.copies == []
    # What the first lane held is still there.
    assert world.turn([*range(9), *"first", *range(1000, 1050), "more"]) == (0, 9 + 5 + 50)


@pytest.mark.parametrize(("shared", "answer"), [(3, 10), (20, 400)])
def test_a_beginning_too_short_for_what_would_have_to_be_moved_is_read(shared, answer):
    world = World(near=True)
    world.turn([*range(shared), *"first"], answer=range(1000, 1000 + answer))
    assert world.turn([*range(shared), *"other"]) == (1, 0)


def test_a_state_that_cannot_be_moved_is_read():
    world = World(near=True)
    world.turn([*range(9), *"first"], answer=range(1000, 1050))
    world.context.restore = lambda lane, state: False
    assert world.turn([*range(9), *"other"]) == (1, 0)


def test_a_busy_lane_lends_its_beginning():
    world = World()
    system = [*TEMPLATE, *range(100, 300)]
    busy, _ = world.begin([*system, *"first"])
    assert world.begin([*system, *"other"]) == (1, len(system))
    assert world.context.lanes[busy] == [*system, *"first"]


def test_what_a_moved_context_computed_is_not_lent():
    world = World()
    busy, _ = world.begin(talk("a"))
    world.lanes.cut(busy, 100, 50)
    known = talk("a")[:100] + talk("a")[150:] + ["more"]
    assert world.begin(known) == (1, 100)


def test_among_lanes_with_nothing_to_lose_the_one_beside_the_busy_ones_is_taken():
    world = World(6)
    for name in "abcd":
        world.begin(talk(name))
    for lane in (0, 1, 2):
        world.lanes.release(lane)
    # Lane 3 is busy; 0, 1 and 2 hold conversations, 4 and 5 are empty.
    assert world.begin(talk("x")) == (4, 0)
    world.lanes.release(3)
    assert world.begin(talk("y")) == (5, 0)


def test_the_only_lane_is_always_taken():
    world = World(1)
    for name in "abab":
        assert world.turn(talk(name))[0] == 0


@pytest.mark.parametrize("count", [2, 5])
def test_memories_that_cannot_forget_go_on_only_from_what_was_saved(count):
    world = World(count, recurrent=True)
    for name in "ab":
        world.turn(talk(name), answer=["an", "answer"])
    # The same again, and after it: the whole state is there.
    assert world.turn([*talk("a"), "an", "answer", "more"]) == (0, 306)
    # Written otherwise at the end: from before the prompt's end.
    assert world.turn([*talk("b")[:-2], "else"]) == (1, 296)
    # Nothing but the template in common: none of it can be used.
    assert world.turn(talk("c")) == (2 if count > 2 else 0, 0)


def test_a_copied_state_that_cannot_forget_is_taken_back_to_where_both_agree():
    world = World(recurrent=True)
    system = [*TEMPLATE, *range(100, 200)]
    world.turn([*system, *"12345678"], answer=range(1000, 1200))
    assert world.turn([*system, *"abcdefgh"]) == (1, len(system))
    assert world.context.copies == [(0, 1)]


def test_a_lane_can_be_made_ready_for_a_prompt_that_another_knows():
    world = World()
    world.turn(talk("a"))
    assert world.lanes.prepare(3, talk("a", 400)) == 304
    assert world.context.lanes[3] == talk("a")
    assert world.lanes.prepare(3, talk("b")) == len(TEMPLATE)


@pytest.mark.parametrize("recurrent", [False, True])
def test_with_too_few_lanes_conversations_come_back_from_the_cache(recurrent):
    world = World(1, kept=10_000, recurrent=recurrent)
    assert [world.turn(talk(name))[1] for name in "abc"] == [0, 0 if recurrent else 4, 0 if recurrent else 4]
    assert [world.turn(talk(name, 350)) for name in "abc"] == [(0, 304)] * 3
    assert [world.turn(talk(name, 400)) for name in "cba"] == [(0, 354)] * 3


def test_the_cache_keeps_to_its_bound_and_forgets_the_longest_unused():
    world = World(1, kept=700)
    for name in "abcd":
        world.turn(talk(name))
    assert [entry.tokens[-1][0] for entry in world.cache.of(world.lanes)] == ["b", "c"]
    assert world.turn(talk("b", 310)) == (0, 304)
    assert world.turn(talk("a")) == (0, len(TEMPLATE))
    assert [entry.tokens[-1][0] for entry in world.cache.of(world.lanes)] == ["d", "b"]


def test_what_is_larger_than_the_cache_is_not_kept_and_drives_nothing_out():
    world = World(1, kept=400)
    world.turn(talk("a"))
    world.turn(talk("b", 500))
    world.turn(talk("c"))
    assert world.turn(talk("a")) == (0, 303)


def test_a_conversation_is_kept_once_as_far_as_it_went():
    world = World(1, kept=10_000)
    for length in (300, 350, 400):
        world.turn(talk("a", length))
        world.turn(talk("b"))
    assert sorted(len(entry.tokens) for entry in world.cache.of(world.lanes)) == [404]


def test_a_beginning_that_is_lent_from_the_cache_stays_there_for_its_conversation():
    world = World(1, kept=10_000)
    system = [*TEMPLATE, *range(100, 300)]
    world.turn([*system, *"first"], answer=range(1000, 1200))
    world.turn(talk("b"))
    assert world.turn([*system, *"other"]) == (0, len(system))
    assert world.turn([*system, *"first", *range(1000, 1200), "more"]) == (0, len(system) + 5 + 200)


def test_what_begins_a_running_conversation_as_well_is_not_fetched():
    world = World(2, kept=10_000)
    for name in "abc":
        world.turn(talk(name))
    busy, _ = world.begin(talk("a", 350))
    assert world.begin(talk("a", 320)) == (1 - busy, 323)


def test_one_cache_serves_two_models_and_forgets_what_one_had():
    world = World(1, kept=700)
    other = Lanes(Cells(1), Cells(1), 1, 8, world.cache)
    for name in "ab":
        world.turn(talk(name))
        other.prepare(0, talk(name))
        other.begin()
        other.add(0, other.missing(0, talk(name)), outputs=0)
        other.decode()
    assert [len(world.cache.of(lanes)) for lanes in (world.lanes, other)] == [1, 1]
    other.close()
    assert world.cache.size == 304
    assert world.turn(talk("a")) == (0, 303)


def test_while_copies_wait_nothing_goes_to_the_cache_or_comes_from_it():
    world = World(1, kept=10_000)
    world.turn(talk("a"))
    world.turn(talk("b"))
    world.context.is_changing = True
    assert world.turn(talk("a")) == (0, len(TEMPLATE))
    assert [entry.tokens[-1][0] for entry in world.cache.of(world.lanes)] == ["a"]


def test_while_copies_wait_nothing_is_moved():
    world = World(near=True)
    world.turn([*range(9), *"first"], answer=range(1000, 1050))
    world.context.is_changing = True
    assert world.turn([*range(9), *"other"]) == (1, 0)
