"""Requests that come together begin together; one alone, a slow one and a failed one keep nobody."""

from __future__ import annotations

import asyncio

import pytest

from paceline.api import arrivals
from paceline.api.arrivals import Arrivals


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """So long that a test which waits for it would fail by its own time limit."""
    monkeypatch.setattr(arrivals, "PATIENCE_S", 600.0)


@pytest.fixture
def order():
    return []


async def _request(all_, name, order, ready):
    with all_.coming() as arrival:
        order.append(f"{name} came")
        await ready
    await arrival.together()
    order.append(f"{name} began")


def test_those_that_come_together_begin_together(order):
    async def come():
        all_, readies = Arrivals(), [asyncio.get_running_loop().create_future() for _ in range(3)]
        tasks = [asyncio.create_task(_request(all_, n, order, r)) for n, r in zip("abc", readies, strict=True)]
        for ready in readies:
            for _ in range(20):
                await asyncio.sleep(0)
            assert not any(said.endswith("began") for said in order)
            ready.set_result(None)
        await asyncio.gather(*tasks)

    asyncio.run(come())
    assert order[:3] == ["a came", "b came", "c came"]
    assert sorted(order[3:]) == ["a began", "b began", "c began"]


def test_one_alone_waits_for_nothing(order):
    async def come():
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        ready.set_result(None)
        await _request(Arrivals(), "a", order, ready)

    asyncio.run(come())
    assert order == ["a came", "a began"]


def test_one_that_comes_while_another_is_about_to_begin_is_waited_for(order):
    async def come():
        loop, all_ = asyncio.get_running_loop(), Arrivals()
        first, second = loop.create_future(), loop.create_future()
        first.set_result(None)
        begun = asyncio.create_task(_request(all_, "a", order, first))
        await asyncio.sleep(0)
        later = asyncio.create_task(_request(all_, "b", order, second))
        for _ in range(20):
            await asyncio.sleep(0)
        assert order == ["a came", "b came"]
        second.set_result(None)
        await asyncio.gather(begun, later)

    asyncio.run(come())
    assert sorted(order[2:]) == ["a began", "b began"]


def test_one_that_fails_is_waited_for_no_longer(order):
    async def come():
        loop, all_ = asyncio.get_running_loop(), Arrivals()
        good, bad = loop.create_future(), loop.create_future()
        good.set_result(None)
        tasks = [asyncio.create_task(_request(all_, n, order, r)) for n, r in (("bad", bad), ("good", good))]
        for _ in range(20):
            await asyncio.sleep(0)
        assert order == ["bad came", "good came"]
        bad.set_exception(ValueError("malformed"))
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0], ValueError)

    asyncio.run(come())
    assert order == ["bad came", "good came", "good began"]


def test_a_slow_one_is_not_waited_for_longer_than_so_long(order, monkeypatch):
    monkeypatch.setattr(arrivals, "PATIENCE_S", 0.001)

    async def come():
        loop, all_ = asyncio.get_running_loop(), Arrivals()
        never, ready = loop.create_future(), loop.create_future()
        ready.set_result(None)
        slow = asyncio.create_task(_request(all_, "slow", order, never))
        await asyncio.sleep(0)
        await _request(all_, "quick", order, ready)
        await _request(all_, "next", order, ready)
        slow.cancel()

    asyncio.run(come())
    assert order == ["slow came", "quick came", "quick began", "next came", "next began"]
