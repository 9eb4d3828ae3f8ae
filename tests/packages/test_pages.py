"""What pages list, in both formats, and which of their wheels is taken here."""

from __future__ import annotations

import json

import pytest
from packaging.tags import sys_tags

from paceline.packages.pages import Listed, best, parse
from paceline.packages.targets import here
from paceline.types import Package

BASE = "https://example.org/whl/alpha/"
SHA = "a" * 64


def test_links_become_files():
    page = f"""<a href="alpha-1.0-py3-none-any.whl">x</a> <a name="top">no file</a>
    <a href="/files/alpha-1.0%2Bcu124-py3-none-any.whl#sha256={SHA}" data-requires-python="&gt;=3.8">y</a>"""
    assert parse(page, BASE) == [
        Listed("alpha-1.0-py3-none-any.whl", f"{BASE}alpha-1.0-py3-none-any.whl"),
        Listed(
            "alpha-1.0+cu124-py3-none-any.whl",
            "https://example.org/files/alpha-1.0%2Bcu124-py3-none-any.whl",
            SHA,
            requires_python=">=3.8",
        ),
    ]


def test_json_becomes_files():
    entry = {"filename": "a.whl", "url": "../a.whl", "hashes": {"sha256": SHA}, "size": 5, "requires-python": None}
    odd = {"filename": "b.whl", "url": "b.whl", "hashes": {"sha256": 5}, "size": -1}
    assert parse(json.dumps({"files": [entry, odd]}), BASE) == [
        Listed("a.whl", "https://example.org/whl/a.whl", SHA, 5),
        Listed("b.whl", f"{BASE}b.whl"),
    ]


@pytest.mark.parametrize("text", ["{}", '{"files": [1]}', '{"files": 1}', '{"files": [{"filename": "a"}]}', "{"])
def test_json_that_is_no_page(text):
    with pytest.raises(ValueError, match=r"no page of a package index|Expecting"):
        parse(text, BASE)


def test_links_that_lead_elsewhere_are_left_out():
    page = '<a href="http://example.org/a.whl">a</a><a href="file:///etc/b.whl">b</a><a href="ftp://x/c.whl">c</a>'
    assert parse(page, BASE) == []
    assert [f.name for f in parse(page, BASE.replace("https", "http"))] == ["a.whl"]
    assert [f.name for f in parse('<a href="https://x/a.whl">a</a>', "http://x/")] == ["a.whl"]


def test_the_best_wheel_is_for_this_python_machine_and_version():
    first, later = [str(tag) for tag in sys_tags() if tag.interpreter.startswith("cp")][:2]
    names = [
        f"alpha-1.0-{later}.whl",
        f"alpha-1.0-{first}.whl",
        "alpha-1.0-py3-none-any.whl",
        "alpha-2.0-py3-none-any.whl",
        "alpha-1.0-cp27-none-any.whl",
        "alpha-1.0.tar.gz",
        "beta-1.0-py3-none-any.whl",
        "nonsense.whl",
    ]
    listed = [Listed(name, f"{BASE}{name}") for name in names]
    assert best(listed, Package("alpha", "1.0"), here()).name == names[1]
    assert best(listed[2:], Package("alpha", "1.0"), here()).name == names[2]
    assert best(listed, Package("alpha", "2.0"), here()).name == names[3]
    assert best(listed[3:], Package("alpha", "1.0"), here()) is None
    assert best([Listed(names[2], BASE, requires_python=">=4")], Package("alpha", "1.0"), here()) is None
    built = [Listed(f"alpha-1.0-{n}-py3-none-any.whl", BASE) for n in (2, 10, 1)]
    assert best([*built, listed[2]], Package("alpha", "1.0"), here()) == built[1]
    local = Listed("alpha-1.0+cu124-py3-none-any.whl", BASE)
    assert best([local], Package("alpha", "1.0"), here()) == local
