"""Who waits for room gets it, however it comes about."""

import asyncio
from contextlib import aclosing, suppress

import psutil
import pytest

from paceline.loading import LoadConfig
from paceline.serving.client import WorkerClient
from paceline.serving.generation import Completion, GenerateParams, Sampling


@pytest.fixture
def birds(cage):
    return [cage.model(cage.add(name)) for name in ("parrot", "finch", "wren")]


def run(scenario):
    async def bounded():
        async with asyncio.timeout(30):
            await scenario

    asyncio.run(bounded())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def used(serving, model):
    """Ask for an answer."""
    async with serving.lease(model) as lease:
        return await read(lease)


async def read(lease):
    async with aclosing(lease.generate(GenerateParams("To be", sampling=Sampling(temperature=0)))) as items:
        (completion,) = [item async for item in items if isinstance(item, Completion)]
        return completion


async def waiting(serving, model):
    """A request for a model that has come to wait for room."""
    asked = asyncio.create_task(used(serving, model))
    await until(serving._places._turn.locked)
    return asked


def loaded(serving):
    return [entry.model.id for entry in serving.loaded()]


def kill(serving, model):
    """Kill the worker of a model; only the tests of this file have such workers."""
    process = serving._places.get(model.id).worker.client._channel._process
    psutil.Process(process.pid).kill()


async def unload(serving, model):
    await serving.unload(model.id)


async def load_otherwise(serving, model):
    await serving.load(model, config=LoadConfig(context_length=128))


@pytest.mark.parametrize("change", [unload, load_otherwise])
@pytest.mark.parametrize("first", ["the change", "the one who waits"])
def test_a_model_that_changes_once_it_is_idle_makes_room(cage, birds, change, first):
    parrot, finch, _ = birds

    async def scenario():
        async with cage.serving(max_loaded=1) as serving:
            async with serving.lease(parrot):
                if first == "the change":
                    changing = asyncio.create_task(change(serving, parrot))
                    await until(serving._places.get(parrot.id).entry.locked)
                asked = await waiting(serving, finch)
                if first != "the change":
                    changing = asyncio.create_task(change(serving, parrot))
                    await until(serving._places.get(parrot.id).entry.locked)
            await changing
            assert await asked
            assert finch.id in loaded(serving)

    run(scenario())


def test_a_model_that_is_to_stay_from_now_on_makes_room_at_once(cage, birds):
    parrot, finch, _ = birds

    async def scenario():
        async with cage.serving(max_loaded=1) as serving, serving.lease(parrot) as lease:
            asked = await waiting(serving, finch)
            await serving.load(parrot)
            assert await asked
            assert await read(lease)
            assert loaded(serving) == [parrot.id, finch.id]

    run(scenario())


def test_a_model_to_stay_is_loaded_while_another_waits_for_room(cage, birds):
    parrot, finch, wren = birds

    async def scenario():
        async with cage.serving(max_loaded=1) as serving:
            async with serving.lease(parrot):
                asked = await waiting(serving, finch)
                await serving.load(wren)
                assert not asked.done()
            assert await asked
            assert loaded(serving) == [finch.id, wren.id]

    run(scenario())


def test_a_load_that_is_given_up_makes_room(cage, birds, monkeypatch):
    parrot, finch, _ = birds

    async def scenario():
        async with cage.serving(max_loaded=1) as serving:
            await used(serving, parrot)
            with monkeypatch.context() as patch:
                patch.setattr(WorkerClient, "initialize", lambda client: asyncio.Event().wait())  # while it is measured
                loading = asyncio.create_task(load_otherwise(serving, parrot))
                await until(serving._places.get(parrot.id).entry.locked)
                asked = await waiting(serving, finch)
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
            assert await asked
            assert loaded(serving) == [finch.id]

    run(scenario())


def test_a_worker_that_dies_under_its_lease_makes_room_and_is_replaced_in_turn(cage, birds):
    parrot, finch, _ = birds

    async def scenario():
        async with cage.serving(max_loaded=1) as serving, serving.lease(parrot) as lease:
            asked = await waiting(serving, finch)
            kill(serving, parrot)
            await until(lambda: loaded(serving) == [])
            assert await read(lease)
            assert await asked

    run(scenario())


def test_a_model_whose_worker_died_goes_before_one_that_can_serve(cage, birds):
    parrot, finch, wren = birds

    async def scenario():
        async with cage.serving(max_loaded=2) as serving:
            await used(serving, parrot)
            await used(serving, finch)
            kill(serving, finch)
            await until(lambda: loaded(serving) == [parrot.id])
            await used(serving, wren)
            assert loaded(serving) == [parrot.id, wren.id]

    run(scenario())


def test_those_who_wait_are_served_in_the_order_they_came(cage, birds):
    parrot, finch, wren = birds
    served = []

    async def ask(serving, model):
        await used(serving, model)
        served.append(model.id)

    async def scenario():
        async with cage.serving(max_loaded=1) as serving:
            async with serving.lease(parrot):
                asked = []
                for n, model in enumerate((finch, wren), 1):
                    asked.append(asyncio.create_task(ask(serving, model)))
                    await until(lambda n=n: sum(place.lock.locked() for place in serving._places) == n)
            asked.append(asyncio.create_task(ask(serving, parrot)))
            await asyncio.gather(*asked)
            assert served[:2] == [finch.id, wren.id]

    run(scenario())


def test_a_request_that_gives_up_waiting_for_room_lets_the_next_wait(cage, birds):
    parrot, finch, wren = birds

    async def scenario():
        async with cage.serving(max_loaded=1) as serving:
            async with serving.lease(parrot):
                gone = await waiting(serving, finch)
                asked = asyncio.create_task(used(serving, wren))
                gone.cancel()
                with suppress(asyncio.CancelledError):
                    await gone
            assert await asked
            assert loaded(serving) == [wren.id]

    run(scenario())
