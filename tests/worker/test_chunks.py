"""A step's room is divided among prompts so that they end early and none waits for ever, and is never exceeded."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline_worker.chunks import draft_room, reading_room, share
from paceline_worker.request import MAX_DRAFT, DraftKnobs
from paceline_worker.speculation import Controller

needs = st.lists(st.integers(1, 5000), max_size=64)
rooms = st.integers(0, 2048)


@given(needs, rooms)
def test_the_room_is_used_and_no_prompt_gets_more_than_it_needs(needs, room):
    shares = share(needs, room)
    assert sum(shares) == min(room, sum(needs))
    assert all(0 <= got <= need for got, need in zip(shares, needs, strict=True))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=64), rooms)
def test_the_oldest_has_three_quarters_of_what_it_can_use(needs, room):
    assert share(needs, room)[0] >= min(needs[0], room - room // 4)


def test_equal_prompts_end_one_after_the_other():
    assert share([100, 100, 100, 100], 250) == [100, 100, 50, 0]
    assert share([1000, 1000], 512) == [512, 0]


def test_a_short_prompt_is_not_held_up_by_a_long_one():
    assert share([5000, 20], 128) == [108, 20]
    assert share([5000, 90], 128) == [96, 32]


def test_prompts_of_about_the_same_length_are_read_in_their_order():
    assert share([70, 60, 50], 128) == [70, 58, 0]
    assert share([200, 51], 128) == [128, 0]
    assert share([200, 50], 128) == [96, 32]


def test_many_prompts_beside_few_generations_are_read_in_few_steps():
    assert reading_room(0, 3, 512) == 512
    assert [reading_room(1, prompts, 512) for prompts in (1, 2, 3, 7)] == [128, 256, 384, 512]
    assert [reading_room(7, prompts, 512) for prompts in (1, 7, 13, 14)] == [128, 128, 128, 256]
    assert reading_room(1, 1, 64) == 64
    assert reading_room(3, 0, 512) == 128


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=16), st.integers(1, 512))
def test_every_prompt_is_read_in_as_few_steps_as_all_tokens_take(needs, room):
    left, steps = list(needs), 0
    while left:
        left = [need - got for need, got in zip(left, share(left, room), strict=True)]
        left = [need for need in left if need]
        steps += 1
    assert steps == -(-sum(needs) // room)


knobs = st.builds(
    DraftKnobs,
    max_tokens=st.integers(0, MAX_DRAFT),
    min_tokens=st.integers(0, MAX_DRAFT),
    exact_tokens=st.none() | st.integers(1, MAX_DRAFT),
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 64), st.integers(1, MAX_DRAFT), st.lists(knobs, min_size=1, max_size=64), st.booleans(), st.data()
)
def test_what_is_verified_never_exceeds_the_outputs_that_a_context_was_made_for(slots, a_slot, asked, lookup, data):
    # llama.cpp ends the process when a batch asks for more.
    outputs = slots * (1 + a_slot)
    asked = asked[:slots]
    prompts = data.draw(st.integers(0, slots - len(asked)))
    room = draft_room(outputs, len(asked), prompts)
    assert room >= a_slot
    controller = Controller()
    history = [1, 2, 3, 4] * 20
    for _ in range(6):
        streams = [controller.open(knob, history, model=True, lookup=lookup) for knob in asked]
        round_ = controller.plan([(stream, room, 1) for stream in streams])
        while wanting := round_.wanting():
            for seat in wanting:
                round_.offer(7, 0.99, seat)
        proposals = round_.proposals()
        assert sum(1 + len(proposal) for proposal in proposals) + prompts <= outputs
        round_.settle([[*proposal, 9] for proposal in proposals], 1e-6, 1e-3)
