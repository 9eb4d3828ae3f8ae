from __future__ import annotations

from pathlib import Path

import pytest

from paceline.errors import IncompatibleError, InstallError, NotFoundError
from paceline.manager.plan import make_plan
from paceline.manager.policy import choose
from paceline.store import Selection
from paceline.types import Compatibility, Package, Recipe, Release, Requirements, Verdict

PINNED = Recipe((Package("wheel", "1", ("aa",)), Package("built", "2", ("bb",), source=True)), expected_build_s=60)
UNPINNED = Recipe((Package("somewhere", "3", index="https://example.org/simple"),))
YES = Verdict(Compatibility.COMPATIBLE, "this machine can run it")
TOOLS = Verdict(Compatibility.MISSING_LIBRARIES, "it needs c++", "install a compiler")
NO = Verdict(Compatibility.INCOMPATIBLE_PLATFORM, "it needs another machine", "buy one")


def release(version, recipe=PINNED, engine="engine"):
    return Release(engine, version, "any", ("gguf", "mlx"), Requirements(), recipe)


def test_the_first_compatible_one_is_taken_and_said():
    choice = choose([(release("2"), YES), (release("1"), YES)])

    assert choice.release.version == "2"
    assert choice.remarks == ("engine-any@2 is the best of 2 matching releases for this machine",)
    assert choose([(release("2"), YES)]).remarks == ()


def test_a_pinned_one_goes_before_a_better_unpinned_one():
    ranked = [(release("2", UNPINNED), YES), (release("1"), YES)]

    choice = choose(ranked)
    assert choice.release.version == "1"
    assert "engine-any@2 would rank higher" in choice.remarks[1]
    assert choose(ranked, allow_unpinned=True).release.version == "2"


def test_an_unpinned_one_is_refused_with_what_keeps_from_the_pinned():
    with pytest.raises(InstallError, match=r"no hashes are published for somewhere 3.*; it needs c\+\+$") as caught:
        choose([(release("3", UNPINNED), YES), (release("2"), NO), (release("1"), TOOLS)])
    assert caught.value.help == "install a compiler; or accept the other with --allow-unpinned"
    with pytest.raises(InstallError, match=r"cannot be checked$") as caught:
        choose([(release("3", UNPINNED), YES), (release("2"), NO)])
    assert caught.value.help == "accept that with --allow-unpinned"


def test_what_does_not_run_here_is_taken_only_on_demand():
    with pytest.raises(IncompatibleError, match=r"^it needs another machine$") as caught:
        choose([(release("1"), NO)])
    assert caught.value.help == "buy one"

    choice = choose([(release("1"), NO)], allow_incompatible=True)
    assert choice.remarks == ("installed although it needs another machine",)


def test_the_reason_told_is_that_of_the_nearest():
    with pytest.raises(IncompatibleError, match=r"^it needs c\+\+$") as caught:
        choose([(release("3"), NO), (release("2"), TOOLS), (release("1"), NO)])
    assert caught.value.help == "install a compiler"
    with pytest.raises(IncompatibleError, match=r"(?s)^none of 7 .*(\n  it needs another machine){5}\n  and 2 more$"):
        choose([(release(str(n)), NO) for n in range(7)])


def test_nothing_to_choose_from():
    with pytest.raises(NotFoundError):
        choose([])


def test_a_plan_says_what_would_happen():
    selection = Selection({"gguf": "engine-any@1", "mlx": "engine-gone@1"})

    plan = make_plan(release("2"), Path("/home"), ["engine-any@1"], selection)

    assert plan.directory == Path("/home/runtimes/engine-any@2")
    assert not plan.already_installed
    assert plan.built == ("built",)
    assert plan.expected_build_s == 60
    assert plan.unpinned == ()
    assert plan.selects == ("mlx",)
    assert make_plan(release("1"), Path("/home"), ["engine-any@1"], selection).already_installed
    assert make_plan(release("2", UNPINNED), Path("/home"), [], Selection()).unpinned == ("somewhere",)


@pytest.mark.parametrize(
    ("build_s", "cores", "expected"),
    [(None, None, 60), (None, 2, 60), (None, 4, 30), (None, 1, 120), (None, 500, 9), (42.0, 4, 42.0)],
)
def test_how_long_a_build_will_take(build_s, cores, expected):
    """As long as it took here, or else as long as elsewhere, for this machine's number of processors."""
    plan = make_plan(release("2"), Path("/home"), [], Selection(), build_s=build_s, cores=cores)
    assert plan.expected_build_s == expected
