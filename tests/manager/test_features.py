from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from paceline import paths
from paceline.manager.features import release_with, way_to
from paceline.plugins import Plugins
from paceline.registry import read_registry
from paceline.store import Store
from paceline.types import Compatibility, Recipe, Release, Requirements, Runtime, Verdict

OK, NO = Verdict(Compatibility.COMPATIBLE, ""), Verdict(Compatibility.UNKNOWN, "")
OLD = Release("engine", "1.9", "cpu", ("gguf",), Requirements(), Recipe(), features=("generate",))
NEW = replace(OLD, version="1.10", features=("generate", "grammar"))
OTHER = replace(NEW, engine="other", version="1.0")
HERE = Runtime("engine", "1.9", "cpu", ("gguf",), ("generate",), Path("runtime"), Path("python"))


@pytest.mark.parametrize(
    ("ranked", "found"),
    [
        ([(OTHER, OK), (NEW, OK), (OLD, OK)], NEW),
        ([(OTHER, OK), (NEW, NO), (OLD, OK)], OTHER),
        ([(replace(OTHER, formats=("mlx",)), OK), (OLD, OK)], None),
        ([(replace(NEW, version="1.8"), OK), (replace(NEW, version="1.9"), OK)], None),
    ],
    ids=["newer", "another engine", "another format", "not newer"],
)
def test_the_release_that_has_it(ranked, found):
    assert release_with("grammar", HERE, ranked) == found


def test_the_command_that_brings_it(tiny, tmp_path):
    store, loaded = Store(tiny.home), Plugins((), {"tiny": tiny.engine})
    runtime = Runtime("tiny", "1.0", "any-cpu", ("tiny",), ("generate",), tmp_path, tmp_path / "python")
    assert way_to("grammar", runtime, store, loaded) is None

    tiny.offer(tiny.release("1.0"), replace(tiny.release("2.0"), features=("generate", "grammar")))
    assert way_to("grammar", runtime, store, loaded) == (
        "tiny-any-cpu@2.0 can: `paceline runtime get tiny-any-cpu@2.0`, then `paceline runtime select tiny-any-cpu@2.0`"
    )
    store.hold("tiny-any-cpu@2.0", "it crashes")
    assert way_to("grammar", runtime, store, loaded) is None


@pytest.mark.runtime
@pytest.mark.parametrize("engine", ["llama_cpp", "mlx"])
def test_the_registry_says_what_workers_say(engine, request):
    """Of each engine, every release has the features that the worker named when it was installed just now."""
    runtime = request.getfixturevalue(f"{engine}_runtime")
    home = request.getfixturevalue(f"{engine}_home")
    said = Store(home).manifest(runtime)["smoke_test"]["features"]

    listed = {r.id: r.features for r in read_registry(paths.registry_file()) if r.engine.startswith(runtime.engine)}
    assert {name: set(features) for name, features in listed.items()} == {name: set(said) for name in listed}
