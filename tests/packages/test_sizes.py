"""What an index or a server says of how large packages are, where their lock says nothing."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import pytest

from paceline.manager.preview import preview
from paceline.packages.download import Patience
from paceline.packages.indexes import Indexes
from paceline.packages.sizes import asked
from paceline.store import Store
from paceline.types import Package, Recipe

NAME = "tinydep-1.0.0-py3-none-any.whl"


@pytest.fixture
def index(tiny, file_server, monkeypatch):
    file_server.add_file(NAME, (tiny.index / NAME).read_bytes())
    file_server.publish("tinydep", {NAME: "2030-01-01"})
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", file_server.index)
    return file_server


@pytest.fixture
def size(tiny):
    return (tiny.index / NAME).stat().st_size


@pytest.fixture
def ask(tiny):
    def run(package):
        with closing(Indexes(tiny.cache, patience=Patience(stall_s=2, attempts=1))) as indexes:
            return asked(Recipe((package,)), indexes)

    return run


def without_sizes(index):
    path = "/simple/tinydep/"
    page = json.loads(index.files[path][0])
    del page["files"][0]["size"]
    index.files[path] = json.dumps(page).encode(), index.files[path][1]


def test_of_a_pinned_package_the_index_says_it_or_the_server(index, ask, size):
    pinned = Package("tinydep", "1.0.0", (index.sha256(NAME),))
    assert ask(pinned) == {"tinydep": size}
    assert f"/files/{NAME}" not in index.asked
    without_sizes(index)
    assert ask(replace(pinned, version="1.0")) == {"tinydep": size}
    asked_how = [m for path, m in zip(index.asked, index.methods, strict=True) if path == f"/files/{NAME}"]
    assert asked_how == ["HEAD"]
    assert ask(replace(pinned, version="2.0")) == {}


def test_of_a_package_with_a_page_of_its_own(index, ask, size):
    own = Package("tinydep", "1.0.0", index=index.index)
    assert ask(own) == {"tinydep": size}
    without_sizes(index)
    assert ask(own) == {"tinydep": size}
    assert ask(replace(own, version="2.0")) == {}
    index.close()
    assert ask(own) == {}


def test_nobody_is_asked_without_need(index, ask, monkeypatch):
    assert ask(Package("tinydep", "1.0.0", ("a" * 64,), (5,))) == {}
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    assert ask(Package("tinydep", "1.0.0", index=index.index)) == {}
    assert index.asked == []


def test_a_preview_tells_what_is_to_be_fetched(tiny, index, size):
    recipe = Recipe((Package("tinydep", "1.0.0", index=index.index),), installed_bytes=1000)
    would = preview(replace(tiny.release(), recipe=recipe), Store(tiny.home))
    assert would.plan.download_bytes == size
    assert not any(space.estimated for space in would.disk)


def test_what_stays_an_estimate_says_about(tiny, index):
    release = tiny.release()
    tiny.offer(replace(release, recipe=Recipe((Package("tinydep", "1.0.0", index=index.index),))))
    environment = {"UV_DEFAULT_INDEX": index.index, "PIP_NO_INDEX": "", "UV_FIND_LINKS": ""}
    said = tiny.paceline("runtime", "get", "--dry-run", "--allow-unpinned", **environment)
    assert "\nNeeds about 32.0 MB in " in said.stdout, said
