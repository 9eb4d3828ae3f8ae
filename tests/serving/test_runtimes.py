"""Runtimes that change while models are served: idle models move, running ones finish, a bad one is given back."""

import asyncio
import json
import shutil
from contextlib import aclosing
from dataclasses import replace

import pytest

from paceline.errors import DoesNotFitError, PacelineError, RequestError
from paceline.loading import LoadConfig
from paceline.manager.installation import install
from paceline.serving.generation import Completion, GenerateParams, Sampling
from paceline.serving.watch import SelectionWatch
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


def refuse(runtime, model):
    """Have the workers of one runtime refuse to load one model."""
    data = json.loads(model.path.read_text())
    fault = {"at": "load", "do": "fail", "value": "a new quantization", "in": runtime.id}
    model.path.write_text(json.dumps(data | {"faults": [*data.get("faults", []), fault]}))


def run(scenario):
    async def bounded():
        async with asyncio.timeout(30):
            await scenario

    asyncio.run(bounded())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


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


def test_what_is_removed_before_it_is_used_is_not_blamed(cage, runtimes, monkeypatch):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes
    use = cage.store.use

    def late(runtime):
        if runtime.id == first.id:
            cage.store.select(second)
            cage.store.remove(first)
        return use(runtime)

    async def scenario():
        async with cage.serving() as serving:
            assert await used(serving, model) == second.id
            assert serving.returned == ()

    monkeypatch.setattr(cage.store, "use", late)
    run(scenario())
    assert (cage.store.selection().holds, cage.store.selection().stand_ins) == ({}, {})


@pytest.mark.parametrize("before", ["loaded a model", "was selected"])
def test_a_runtime_that_never_worked_and_fails_is_given_back_and_held(cage, runtimes, caplog, before):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            if before == "loaded a model":
                await used(serving, model)
            cage.store.select(second)
            spoil(second)
            assert await used(serving, model) == first.id
            returned.extend(serving.returned)

    returned = []
    run(scenario())
    chosen = cage.store.selection()
    assert chosen.formats == {"echo": first.id}
    assert [hold.reason for hold in chosen.holds.values()] == [f"did not load parrot: {returned[0].reason}"]
    assert chosen.stand_ins == {}
    assert f"{second.id} does not load parrot" in caplog.text
    assert "this build is broken" in caplog.text
    assert f"Returned to {first.id}" in caplog.text
    assert [(r.runtime, r.to, r.model, r.held) for r in returned] == [(second.id, first.id, "parrot", True)]


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
    assert (chosen.formats, chosen.holds, chosen.stand_ins) == ({"echo": second.id}, {}, {})


def test_a_model_that_a_new_runtime_does_not_load_is_served_by_the_one_that_did(cage, runtimes, caplog):
    parrot, finch = (cage.model(cage.add(name)) for name in ("parrot", "finch"))
    first, second, third = runtimes
    returned = []

    async def scenario():
        async with cage.serving() as serving:
            assert await used(serving, parrot) == first.id
            cage.store.select(second)
            assert await used(serving, finch) == second.id
            refuse(second, parrot)
            assert await used(serving, parrot) == first.id
            assert await used(serving, parrot) == first.id  # and stays with it
            returned.extend(serving.returned)
        async with cage.serving() as serving:  # also after a restart, without another try
            assert await used(serving, parrot) == first.id
            assert await used(serving, finch) == second.id
            assert serving.returned == ()
            cage.store.select(third)
            assert await used(serving, parrot) == third.id  # what is selected next gets its own chance

    run(scenario())
    chosen = cage.store.selection()
    (found,) = chosen.stand_ins.values()
    assert (found.runtime, found.instead_of, found.format) == (first.id, second.id, "echo")
    assert "cannot be loaded: a new quantization" in found.reason
    assert (chosen.holds, chosen.models) == ({}, {})
    assert [(r.runtime, r.to, r.model, r.held) for r in returned] == [(second.id, first.id, "parrot", False)]
    assert f"{second.id} does not load parrot" in caplog.text
    assert f"{first.id}, which loads it, serves this model as long as {second.id} is selected" in caplog.text


@pytest.mark.parametrize("why", ["held", "broken", "gone", "does not load it either", "nothing to remember"])
def test_without_another_that_loads_the_model_the_error_is_the_first_one(cage, runtimes, why):
    parrot, finch = (cage.model(cage.add(name)) for name in ("parrot", "finch"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, finch if why == "nothing to remember" else parrot)
            cage.store.select(second)
            await used(serving, finch)
            refuse(second, parrot)
            if why != "nothing to remember":
                await serving.unload(parrot.id)
            if why == "held":
                cage.store.hold(first.id)
            elif why == "broken":
                (first.directory / "manifest.json").write_text("{}")
            elif why == "gone":
                cage.store.remove(first)
            elif why == "does not load it either":
                refuse(first, parrot)
            with pytest.raises(PacelineError, match="a new quantization"):
                await used(serving, parrot)

    run(scenario())
    chosen = cage.store.selection()
    assert (chosen.formats, chosen.stand_ins) == ({"echo": second.id}, {})
    assert list(chosen.holds) == ([first.id] if why == "held" else [])


def test_what_the_user_chose_for_a_model_has_a_stand_in_too(cage, runtimes):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, model)
            cage.store.select_for_model(second, model.id)
            refuse(second, model)
            assert await used(serving, model) == first.id
            cage.store.select_for_model(second, model.id)  # said once more: it is tried once more
            assert cage.store.selected("echo", model.id) == second
            assert await used(serving, model) == first.id
            assert len(serving.returned) == 2

    run(scenario())


def test_a_new_runtime_is_not_held_for_a_model_that_the_one_before_did_not_load_either(cage, runtimes):
    parrot, finch = (cage.model(cage.add(name)) for name in ("parrot", "finch"))
    first, second, third = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, parrot)
            cage.store.select(second)
            await used(serving, finch)
            refuse(second, parrot)
            assert await used(serving, parrot) == first.id
            cage.store.select(third)
            refuse(third, parrot)
            assert await used(serving, parrot) == first.id
            assert await used(serving, finch) == third.id

    run(scenario())
    chosen = cage.store.selection()
    assert (chosen.formats, chosen.holds) == ({"echo": third.id}, {})
    assert chosen.stand_in("parrot").instead_of == third.id


def test_what_nobody_is_to_blame_for_is_raised_and_changes_nothing(cage, runtimes, monkeypatch):
    model = cage.model(cage.add("parrot"))
    second = runtimes[1]

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, model)
            await serving.unload(model.id)
            cage.store.select(second)
            with pytest.raises(RequestError, match="no load option cache_type_k"):
                await serving.load(model, config=LoadConfig(cache_type_k="f16"))

            async def refused(*_, **__):
                raise DoesNotFitError("no room")

            monkeypatch.setattr("paceline.serving.fit.MemoryGuard.check", refused)
            with pytest.raises(DoesNotFitError, match="no room"):
                await used(serving, model)
            assert serving.returned == ()

    run(scenario())
    chosen = cage.store.selection()
    assert (chosen.formats, chosen.holds, chosen.stand_ins) == ({"echo": second.id}, {}, {})


def test_where_nothing_can_be_written_the_model_is_served_all_the_same(cage, runtimes, caplog):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, model)
            cage.store.select(second)
            spoil(second)
            shutil.rmtree(cage.store.home / "locks")
            (cage.store.home / "locks").write_text("in the way")
            assert await used(serving, model) == first.id

    run(scenario())
    assert f"{first.id} serves it for now: taking a lock failed" in caplog.text


def test_a_runtime_that_loaded_the_model_before_is_not_to_blame(cage, runtimes):
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


def test_idle_models_move_without_being_asked_for(cage, runtimes, caplog):
    caplog.set_level("INFO")
    parrot, finch, robin = (cage.model(cage.add(name)) for name in ("parrot", "finch", "robin"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, parrot)
            await serving.load(finch, config=LoadConfig(context_length=100))
            cage.store.select(second)
            await serving.move_idle()
            moved = {m.model.id: (m.runtime.id, m.context_length) for m in serving.loaded()}
            assert moved == {"parrot": (second.id, 4096), "finch": (second.id, 100)}
            assert cage.store.in_use_by(first) == ()
            cage.store.select_for_model(first, robin.id)
            await serving.move_idle()
            assert len(serving.loaded()) == 2  # nothing was loaded that was not
            assert await used(serving, parrot) == second.id

    run(scenario())
    assert f"parrot moved from {first.id} to {second.id}" in caplog.text


def test_a_model_in_use_moves_when_its_last_request_ends(cage, runtimes):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            async with serving.lease(model) as lease:
                cage.store.select(second)
                await serving.move_idle()
                assert len(await read(lease)) == 1
                async with serving.lease(model) as other:
                    pass
                assert (lease.runtime.id, other.runtime.id) == (first.id, first.id)
            await until(lambda: [m.runtime.id for m in serving.loaded()] == [second.id])
            assert cage.store.in_use_by(first) == ()

    run(scenario())


def test_an_idle_model_that_does_not_move_stays_loaded_and_is_tried_once(cage, runtimes, caplog):
    model = cage.model(cage.add("parrot"))
    first, second, third = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, model)
            cage.store.note_loaded(second, "echo", model.id)  # so that it is not to blame
            cage.store.select(second)
            refuse(second, model)
            await serving.move_idle()
            assert [m.runtime.id for m in serving.loaded()] == [first.id]
            assert caplog.text.count("a new quantization") == 1
            await serving.move_idle()
            assert await used(serving, model) == first.id
            assert caplog.text.count("a new quantization") == 1
            cage.store.select(third)
            await serving.move_idle()
            assert [m.runtime.id for m in serving.loaded()] == [third.id]

    run(scenario())
    assert f"parrot stays with {first.id}; {second.id} does not load it as it is" in caplog.text
    assert cage.store.selection().holds == {}


def test_an_idle_model_falls_back_on_its_way(cage, runtimes):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, model)
            cage.store.select(second)
            spoil(second)
            await serving.move_idle()
            assert [m.runtime.id for m in serving.loaded()] == [first.id]
            assert [r.runtime for r in serving.returned] == [second.id]

    run(scenario())
    assert cage.store.selection().formats == {"echo": first.id}


def test_a_model_that_loads_nowhere_any_more_is_unloaded_and_said(cage, runtimes, caplog):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            await used(serving, model)
            cage.store.select(second)
            refuse(first, model)
            refuse(second, model)
            await serving.move_idle()
            assert serving.loaded() == ()
            with pytest.raises(PacelineError, match="a new quantization"):
                await used(serving, model)

    run(scenario())
    assert f"parrot was to move from {first.id} to {second.id} and is loaded no more" in caplog.text


def test_a_move_takes_no_place_from_what_is_asked_for(cage, runtimes):
    parrot, finch = (cage.model(cage.add(name)) for name in ("parrot", "finch"))
    second = runtimes[1]

    async def scenario():
        async with cage.serving(max_loaded=1) as serving:
            async with serving.lease(parrot):
                cage.store.select(second)
                await serving.move_idle()
                asked = asyncio.create_task(used(serving, finch))
                await until(serving._places._turn.locked)  # it waits for the place
            assert await asked == second.id
            assert [m.model.id for m in serving.loaded()] == ["finch"]

    run(scenario())


@pytest.mark.parametrize("told", [True, False])
def test_idle_models_follow_a_selection_made_elsewhere(cage, runtimes, told):
    model = cage.model(cage.add("parrot"))
    first, second, _ = runtimes

    async def scenario():
        async with cage.serving() as serving:
            watch = SelectionWatch(serving, cage.store, every_s=3600 if told else 0.01)
            watch.begin()
            await used(serving, model)
            for runtime in (second, first):
                Store(cage.store.home).select(runtime)
                if told:
                    watch.look()
                await until(lambda wanted=runtime.id: [m.runtime.id for m in serving.loaded()] == [wanted])
            await serving.unload(model.id)
            await watch.close()

    run(scenario())


def test_a_watch_outlives_what_goes_wrong(cage, runtimes, caplog, monkeypatch):
    model = cage.model(cage.add("parrot"))
    _, second, third = runtimes

    async def fails():
        monkeypatch.undo()
        raise ZeroDivisionError

    async def scenario():
        async with cage.serving() as serving:
            watch = SelectionWatch(serving, cage.store, every_s=3600)
            watch.begin()
            await used(serving, model)
            monkeypatch.setattr(serving, "move_idle", fails)
            cage.store.select(second)
            watch.look()
            await until(lambda: "could not be moved" in caplog.text)
            cage.store.select(third)
            watch.look()
            await until(lambda: [m.runtime.id for m in serving.loaded()] == [third.id])
            await watch.close()

    run(scenario())


def test_a_model_can_be_unloaded_while_it_moves(cage, runtimes):
    model = cage.model(cage.add("parrot"))
    second = runtimes[1]

    async def scenario():
        async with cage.serving() as serving:
            async with serving.lease(model):
                cage.store.select(second)
                await serving.move_idle()
            await until(lambda: cage.store.in_use_by(second))
            await serving.unload(model.id)
            assert serving.loaded() == ()
            assert cage.store.in_use_by(second) == ()

    run(scenario())


def test_closing_ends_a_move(cage, runtimes):
    second = runtimes[1]
    model = cage.model(cage.add("parrot", faults=[{"at": "load", "do": "hang", "in": second.id}]))

    async def scenario():
        async with cage.serving() as serving:
            async with serving.lease(model):
                cage.store.select(second)
                await serving.move_idle()
            await until(lambda: cage.store.in_use_by(second))
        assert serving.loaded() == ()
        assert cage.store.in_use_by(second) == ()

    run(scenario())


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
