"""The serving room over real worker processes: the echo engine is the fake engine, its model files hold the faults."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ECHO = Path(__file__).parents[1] / "thirdparty" / "paceline-echo" / "src"
WORDS = ["To", " be", " or", " not", " to", " be,", " that", " is", " the", " question"]
LINE = "To be or not to be, that is the question"


@pytest.fixture(scope="session")
def echo_plugins():
    """The plugins of a host that has the echo engine alone."""
    from paceline.formats import builtin_formats
    from paceline.plugins import Plugins

    sys.path.insert(0, str(ECHO))
    try:
        from paceline_echo.engine import EchoEngine
        from paceline_echo.format import EchoFormat
    finally:
        sys.path.remove(str(ECHO))
    formats = {f.name: f for f in (*builtin_formats(), EchoFormat())}
    return Plugins((), engines={"echo": EchoEngine()}, formats=formats)


@pytest.fixture(scope="session")
def echo_store(echo_plugins, tmp_path_factory):
    """A store with the echo runtime, really installed."""
    from paceline.manager.installation import install
    from paceline.store import Store

    store = Store(tmp_path_factory.mktemp("home"))
    engine = echo_plugins.engine("echo")
    (release,) = engine.releases()
    install(release, store, engine, cache=tmp_path_factory.mktemp("cache"))
    return store


@dataclass
class Cage:
    """A folder of echo models and a serving room over them."""

    plugins: object
    store: object
    folder: Path

    def add(self, name, **data):
        """Write a model; `faults`, `repeat`, `wrong_every`, ... as the echo worker knows them."""
        path = self.folder / "birds" / name / f"{name}.echo"
        path.parent.mkdir(parents=True)
        model = {"name": name, "parameters": 2000, "context_length": 4096, "vocabulary": WORDS, "card": "x" * 100}
        path.write_text(json.dumps(model | data))
        return name

    def add_draft(self, name, **data):
        return self.add(name, parameters=1000, card="", **data)

    def model(self, name):
        return self._library().get(name)

    @asynccontextmanager
    async def serving(self, **options):
        from paceline.library.pairs import PairIndex
        from paceline.serving.pool import Serving

        pairs = PairIndex(self._library(), self.plugins, self.folder / "pairs.sqlite")
        serving = Serving(plugins=self.plugins, pairs=pairs, store=self.store, **options)
        try:
            yield serving
        finally:
            await serving.close()

    def _library(self):
        from paceline.library import Library

        return Library(self.plugins.formats.values(), [self.folder], self.folder / "models.sqlite")


@pytest.fixture
def cage(echo_plugins, echo_store, tmp_path):
    return Cage(echo_plugins, echo_store, tmp_path)


@pytest.fixture(scope="session")
def line():
    return LINE
