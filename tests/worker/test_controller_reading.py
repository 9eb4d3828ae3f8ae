"""Drafts that cost a reading first, and texts that change: what the controller promises holds there, too.

Simulated like `test_controller`; the draft model reads a prompt in parts, beside steps that decode.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from paceline_worker.speculation import READ_AT_ONCE, Controller

sys.path.insert(0, str(Path(__file__).parent))

from speculation_simulator import MACHINES, Machine, curve, read_traces, ride_together, with_prompts

NOISE = 0.3
WARM_UP_TOKENS = 256
LENGTHS = (0, 1, 2, 3, 5)

TOGETHER = {
    machine.name: machine
    for machine in (
        Machine("q8_0", curve({1: 1, 4: 1.86, 8: 2.85, 16: 4.73, 24: 6.7, 32: 8.7}), 0.03, 0.0008),
        Machine("f16", curve({1: 1, 3: 1.52, 4: 1.62, 8: 2.3, 16: 4.0, 32: 7.4}), 0.02, 0.0007),
        Machine("gpu", curve({1: 1, 8: 1.02, 64: 1.4, 136: 2.4}), 0.03, 0.002),
    )
}
TEXTS = (("good", 0.0), ("bad", 0.8), ("weak", 0.0), ("good", 0.8), ("bad", 0.0), ("good", 0.0), ("weak", 0.8))
"""Drafts that are good for one kind of text and bad for the next, and by what temperature."""


def that_change(width, requests, prompt):
    """For each sequence so many whole requests of every kind in turn, with prompts of that many tokens."""
    lanes = []
    for lane in range(width):
        texts = [read_traces(*text) for text in TEXTS]
        own = [found[(5 * lane + n + i) % len(found)] for n, found in enumerate(texts) for i in range(requests)]
        lanes.append(with_prompts(own, prompt))
    return lanes


def assert_keeps_its_promises(lanes, machine, regret=0.05, **how):
    done = ride_together(lanes, replace(machine, noise=NOISE), **how)
    best = max(r.tokens / r.seconds for r in (ride_together(lanes, machine, length) for length in LENGTHS))
    tokens, seconds = next(point for point in done.history if point[0] >= WARM_UP_TOKENS)
    plain = len(lanes) / machine.verify(len(lanes))
    assert (done.tokens - tokens) / (done.seconds - seconds) > 0.98 * plain
    assert done.tokens / done.seconds > (1 - regret) * best, "regret against the best fixed length, warm-up included"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("draft", "prompt"), [("good", 2000), ("weak", 500), ("weak", 2000), ("bad", 2000)])
def test_what_the_draft_has_to_read_is_part_of_the_price(draft, prompt, machine):
    assert_keeps_its_promises([with_prompts(read_traces(draft, 0.0), prompt)], MACHINES[machine])


@pytest.mark.parametrize("machine", ["1b-q8_0", "steps"])
@pytest.mark.parametrize("draft", ["good", "bad"])
def test_answers_may_end_long_before_their_limit(draft, machine):
    """Nobody knows then how many drafts a reading will serve."""
    assert_keeps_its_promises([with_prompts(read_traces(draft, 0.0), 1000)], MACHINES[machine], max_tokens=2048)


@pytest.mark.parametrize("prompt", [0, 500])
@pytest.mark.parametrize("machine", MACHINES)
def test_long_stretches_of_texts_that_change(machine, prompt):
    assert_keeps_its_promises(that_change(1, 4, prompt), MACHINES[machine])


@pytest.mark.parametrize(("width", "prompt"), [(4, 0), (4, 500), (8, 500)])
@pytest.mark.parametrize("machine", TOGETHER)
def test_long_stretches_of_texts_that_change_in_several_sequences(machine, width, prompt):
    """Where reading is dear and a fixed length gains much, what the account allows for looks is what is lost."""
    regret = 0.1 if (machine, prompt) == ("gpu", 500) else 0.05
    assert_keeps_its_promises(that_change(width, 4, prompt), TOGETHER[machine], regret)


# --- decisions ------------------------------------------------------------------------------------------------------


def step(controller, stream, lag, room=100):
    return controller.plan([(stream, room, lag)])


def timed(controller, stream):
    """Plain steps, after which the first draft is due."""
    for _ in range(2):
        step(controller, stream, 1).settle([[1]], 0.0, 1.0)


def test_a_length_to_learn_waits_until_the_prompt_is_read():
    controller = Controller()
    stream = controller.open()
    timed(controller, stream)
    lengths = []
    for prompt in (5 * READ_AT_ONCE, 3):
        for lag in range(prompt, 0, -READ_AT_ONCE):
            round_ = step(controller, stream, lag)
            assert round_.wants()
            if lag > READ_AT_ONCE:
                round_.stop(behind=True)
                round_.settle([[1]], 0.01, 1.0)
        while round_.wants():
            round_.offer(2, 0.9)
        lengths.append(len(round_.proposals()[0]))
        round_.settle([[1]], 0.3, 2.0)
    assert lengths == [4, 7]


def test_no_prompt_is_read_in_part():
    """What the account could not pay to its end is not begun, though the drafts would be worth it."""
    controller = Controller()
    stream = controller.open()
    timed(controller, stream)
    for _ in range(40):  # a perfect draft, of which a step takes next to nothing and reading a token 0.001
        round_ = step(controller, stream, 400)
        while round_.wants():
            round_.offer(2, 0.999)
        drafted = len(round_.proposals()[0])
        round_.settle([[2] * (drafted + 1)], 0.4 + 0.001 * drafted, 1.0 + 0.01 * drafted)
    assert controller.account.credit > 10

    def begins(lag):
        return step(controller, stream, lag, room=1000).wants()

    shortest = next(lag for lag in range(400, 40_000, 50) if not begins(lag))
    assert 1000 < shortest < 24_000
    controller.account.pay(100, 130)
    assert not begins(shortest - 100)


def test_an_answer_that_ends_before_the_prompt_is_read_gets_no_draft():
    controller = Controller()
    stream = controller.open()
    timed(controller, stream)
    for _ in range(40):
        round_ = step(controller, stream, 1)
        while round_.wants():
            round_.offer(2, 0.95)
        drafted = len(round_.proposals()[0])
        round_.settle([[2] * (drafted + 1)], 0.001 * drafted, 1.0 + 0.02 * drafted)
    lag = 10 * READ_AT_ONCE
    assert step(controller, stream, lag, room=100).wants()
    assert not step(controller, stream, lag, room=9).wants()
