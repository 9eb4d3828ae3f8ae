"""Runtimes that change while models are served: idle models move, running ones finish, a bad one is given back."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from paceline.errors import PacelineError
from paceline.manager.installation import install
from paceline.serving.generation import Completion, GenerateParams, Sampling
from paceline.store import Store


@pytest.fixture
def runtimes(echo_plugins, cage, tmp_path):
    """Three versions of the echo runtime, of which the first is selected."""
    cage.store = Store(tmp_path / "home")
    engine = echo_plugins.engine("echo")
    (release,) = engine.releases()
    versions = ("1.0.0", "2.0.0", "3.0.0")
    return [install(replace(release, version=v), cage.store, engine, cache=tmp_path / "cache") for v in versions]


def spoil(runtime):
    """Leave every file as long as it was, and a Python that does not start."""
    python = runtime.python
    python.unlink()
    python.write_text("#!/bin/sh\necho this build is broken >&2\nexit 3\n")
    python.chmod(0o755)


def run(scenario):
    async def bounded():
        async with asyncio.timeout(30):
            await scenario

    asyncio.run(bounded())


async def used(serving, model):
    """Ask for an answer; the id of the runtime that gave it."""
    async with serving.lease(model) as lease:
        await read(lease)
        return lease.runtime.id


async def read(lease):
    async with aclosing(lease.generate(GenerateParams("To be", sampling=Sampling(temperature=0)))) as items:
        return [item async for item in items if isinstance(item, Completion)]


def test_an_idle_model_moves_to_the_runtime_that_was_selected(cage, runtimes):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            assert await used(serving, model) == first.id
            cage.store.select(second)
            assert await used(serving, model) == second.id
            assert len(serving.loaded()) == 1

    run(scenario())


def test_what_runs_finishes_on_the_old_runtime(cage, runtimes):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            async with serving.lease(model) as lease:
                cage.store.select(second)
                assert await used(serving, model) == first.id  # beside the one that holds it
                assert len(await read(lease)) == 1
                assert lease.runtime.id == first.id
            assert await used(serving, model) == second.id

    run(scenario())


def test_a_runtime_that_never_worked_and_fails_is_given_back_and_held(cage, runtimes, caplog):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, model)
            cage.store.select(second)
            spoil(second)
            assert await used(serving, model) == first.id
            returned.extend(serving.returned)

    returned = []
    run(scenario())
    chosen = cage.store.selection()
    assert chosen.formats == {"echo": first.id}
    assert chosen.holds == (second.id,)
    assert f"{second.id} does not load parrot" in caplog.text
    assert "this build is broken" in caplog.text
    assert f"Returned to {first.id}" in caplog.text
    assert [(r.runtime, r.to, r.model) for r in returned] == [(second.id, first.id, "parrot")]


def test_a_model_that_no_runtime_loads_changes_no_selection(cage, runtimes):
    good = cage.model(cage.add("parrot"))
    bad = cage.model(cage.add("dodo", faults=[{"at": "load", "do": "exit", "value": 1}]))
    second = runtimes[1]

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, good)
            cage.store.select(second)
            with pytest.raises(PacelineError):
                await used(serving, bad)

    run(scenario())
    chosen = cage.store.selection()
    assert (chosen.formats, chosen.holds) == ({"echo": second.id}, ())


def test_a_runtime_that_worked_before_is_not_to_blame(cage, runtimes):
    model = cage.model(cage.add("parrot"))
    second = runtimes[1]

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, model)
            cage.store.select(second)
            await used(serving, model)
            await serving.unload(model.id)
            spoil(second)
            with pytest.raises(PacelineError, match="exit code 3"):
                await used(serving, model)

    run(scenario())
    assert cage.store.selection().formats == {"echo": second.id}


def test_a_damaged_selection_does_not_stop_what_is_loaded(cage, runtimes):
    model = cage.model(cage.add("parrot"))

    async def scenario():
        async with cage.serving() as serving:
            before = await used(serving, model)
            (cage.store.home / "selection.json").write_text("{")
            assert await used(serving, model) == before

    run(scenario())


def test_quiet_is_when_nobody_asks(cage, runtimes):
    model = cage.model(cage.add("parrot"))

    async def scenario():
        async with cage.serving() as serving:
            assert not serving.is_busy()
            await serving.quiet(0)
            async with serving.lease(model):
                assert serving.is_busy()
                waiting = asyncio.create_task(serving.quiet(0.01))
                done, _ = await asyncio.wait([waiting], timeout=0.1)
                assert not done
            await waiting
            assert not serving.is_busy()

    run(scenario())
