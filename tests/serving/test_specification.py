"""A plugin that cannot say how its worker starts, or what a model takes: a clear error, and the host goes on."""

import asyncio
from contextlib import aclosing

import pytest

from paceline.api.errors import as_api_error
from paceline.errors import PluginError, SmokeTestError
from paceline.manager.installation import install
from paceline.plugins import Plugins
from paceline.serving.generation import Completion, GenerateParams, Sampling
from paceline.types import WorkerSpec


def _raise(error):
    raise error


FAULTS = {
    "ValueError: of its own": lambda: _raise(ValueError("of\nits own")),
    "SystemExit: 3": lambda: _raise(SystemExit(3)),
    "it answered None": lambda: None,
    "it answered ['python']": lambda: ["python"],
    "it answered WorkerSpec(argv=()": lambda: WorkerSpec(()),
    "it answered WorkerSpec(argv='python'": lambda: WorkerSpec("python"),
    "it answered WorkerSpec(argv=('python', 1)": lambda: WorkerSpec(("python", 1)),
    r"it answered WorkerSpec(argv=('a\x00b',)": lambda: WorkerSpec(("a\0b",)),
    "it answered WorkerSpec(argv=('python',), env={'A': 1}": lambda: WorkerSpec(("python",), {"A": 1}),
    "it answered WorkerSpec(argv=('python',), env=None": lambda: WorkerSpec(("python",), None),
    "it answered WorkerSpec(argv=('python',), env={}, cwd=1": lambda: WorkerSpec(("python",), {}, 1),
}


@pytest.fixture
def faulty(cage):
    """The echo engine with a fault in one of its methods, in the cage: `faulty(method, fault)`; returns the engine."""
    right = cage.plugins.engine("echo")

    class Faulty(type(right)):
        pass

    def faulty(method, fault):
        engine = Faulty()
        setattr(engine, method, lambda *_, **__: fault())
        cage.plugins = Plugins((), engines={"echo": engine}, formats=cage.plugins.formats)
        return engine

    return faulty


async def answer(serving, model):
    async with serving.lease(model) as lease:
        params = GenerateParams("To be", sampling=Sampling(temperature=0))
        async with aclosing(lease.generate(params)) as items:
            return [item async for item in items if isinstance(item, Completion)]


@pytest.mark.parametrize("said", FAULTS)
def test_a_worker_that_the_plugin_cannot_name(cage, faulty, said):
    engine = faulty("worker", FAULTS[said])
    model = cage.model(cage.add("parrot"))
    (runtime,) = cage.store.runtimes()

    async def scenario():
        async with cage.serving() as serving:
            with pytest.raises(PluginError) as caught:
                await answer(serving, model)
            assert cage.store.in_use_by(runtime) == ()
            del engine.worker  # as it is after the plugin was mended
            assert len(await answer(serving, model)) == 1
            return caught.value

    error = asyncio.run(scenario())

    assert f"the engine echo ({__name__}) could not say how a worker of {runtime.id} starts: {said}" in error.message
    assert "`paceline plugins`" in error.help
    told = as_api_error(error)
    assert (told.status, told.code) == (503, "plugin_error")


@pytest.mark.parametrize("fault", [lambda: _raise(SystemExit(3)), lambda: "much", lambda: _raise(ValueError())])
def test_an_estimate_that_the_plugin_cannot_make_stops_no_model(cage, faulty, caplog, fault):
    faulty("estimate", fault)
    model = cage.model(cage.add("parrot"))

    async def scenario():
        async with cage.serving() as serving:
            assert len(await answer(serving, model)) == 1

    asyncio.run(scenario())
    assert f"the engine echo ({__name__})" in caplog.text


def test_what_cannot_be_started_is_not_installed(cage, faulty, tmp_path):
    from paceline.store import Store

    engine, store = faulty("worker", lambda: None), Store(tmp_path / "home")
    (release,) = engine.releases()
    with pytest.raises(SmokeTestError, match=r"could not say how a worker of .* starts: it answered None"):
        install(release, store, engine, cache=tmp_path / "cache")
    assert store.runtimes() == ()
