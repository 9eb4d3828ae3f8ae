"""The modules of `benchmarks/`, which are scripts beside one another and no package."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="session")
def bench():
    """Imports one by name: `bench("report")`."""

    def load(name):
        sys.path.insert(0, FOLDER)
        try:
            return import_module(name)
        finally:
            sys.path.remove(FOLDER)

    return load
