"""How much a lock makes an installation fetch."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from paceline.packages import python_versions
from paceline.packages.locked import applies, download_bytes, files_of, joined, pinned_to
from paceline.types import Package, Recipe

A, B = "a" * 64, "b" * 64
WHEEL = Package("wheel", "1", (A, B), (30, 40))
SOURCE = Package("source", "1", (A,), (500,), source=True)
TOOL = Package("tool", "1", (A,), (7,))
OLD = Package("old", "1", (A,), (1000,), marker="python_version < '3.5'")


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ((), 0),
        ((WHEEL,), 40),  # one of the two
        ((WHEEL, OLD), 40),
        ((WHEEL, SOURCE), 547),  # and what builds it
        ((SOURCE, TOOL), 507),  # a package that is needed twice comes once
        ((WHEEL, replace(TOOL, size=())), None),
        ((WHEEL, Package("unpinned", "1", index="https://x.example")), None),
        ((WHEEL, Package("here", "1", (A,), file="here-1-py3-none-any.whl")), 40),
    ],
)
def test_the_most_that_is_fetched(packages, expected):
    assert download_bytes(Recipe(packages, (TOOL, OLD))) == expected


def test_sizes_belong_to_hashes_whatever_their_order():
    made = pinned_to(Package("p", "1"), {B: 2, A: 1})
    assert (made.sha256, made.size) == ((A, B), (1, 2))
    assert files_of(made) == {A: 1, B: 2}
    assert files_of(pinned_to(made, {B: 2, A: None})) == {A: None, B: None}


def test_for_which_python():
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    newer = replace(TOOL, marker="python_full_version >= '3.12'")
    assert [applies(newer, python) for python in ("3.9", "3.12", "3.14")] == [False, True, True]
    assert applies(newer) == applies(newer, here)


def test_the_locks_of_several_pythons_are_one():
    new, elsewhere = Package("wheel", "2", (A,), (50,)), replace(WHEEL, sha256=(B,), size=(40,))
    locks = {"3.10": [new, TOOL], "3.9": [replace(WHEEL, sha256=(A,), size=(30,)), TOOL], "3.11": [elsewhere, SOURCE]}
    assert joined(locks) == (
        replace(SOURCE, marker="python_version >= '3.11'"),
        replace(TOOL, marker="python_version <= '3.10'"),
        replace(WHEEL, marker="python_version == '3.9' or python_version == '3.11'"),
        replace(new, marker="python_version == '3.10'"),
    )
    for python, packages in locks.items():
        taken = {(p.name, p.version) for p in joined(locks) if applies(p, python)}
        assert taken == {(p.name, p.version) for p in packages}
    assert joined({"3.9": [TOOL], "3.10": [TOOL]}) == (TOOL,)
    assert joined({}) == ()


@pytest.mark.parametrize(
    ("pythons", "specifier"),
    [
        (["3.12"], "==3.12.*"),
        (["3.11", "3.9", "3.10"], ">=3.9,<3.12"),
        (["3.11", "3.14", "3.12"], ">=3.11,<3.15,!=3.13.*"),
    ],
)
def test_pythons_and_their_specifier(pythons, specifier):
    assert python_versions.specifier_of(pythons) == specifier
    assert set(python_versions.named_by(specifier)) == set(pythons)
    for without_end in (None, ">=3.11"):
        assert python_versions.named_by(without_end) == []
        assert python_versions.admitted(without_end) == list(python_versions.LOCKED)
