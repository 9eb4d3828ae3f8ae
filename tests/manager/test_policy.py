from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from paceline.errors import IncompatibleError, InstallError, NotFoundError
from paceline.manager.plan import make_plan
from paceline.manager.policy import choose
from paceline.store import Selection
from paceline.store.selection import Hold
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
    assert choice.remarks == ("engine-any@2 is the best of 2 matching releases",)
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
    assert caught.value.help == "install a compiler; or accept engine-any@3 with --allow-unpinned"
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
    others = [Verdict(Compatibility.INCOMPATIBLE_PLATFORM, f"it needs machine {n}") for n in range(7)]
    with pytest.raises(IncompatibleError, match=r"(?s)^none of 7 .*(\n  it needs machine \d){5}\n  and 2 more$"):
        choose([(release(str(n)), other) for n, other in enumerate(others)])


def test_a_reason_is_told_once():
    with pytest.raises(IncompatibleError, match=r"^it needs c\+\+$"):
        choose([(release("3"), TOOLS), (release("2"), TOOLS)])
    card = Verdict(Compatibility.NO_SUPPORTED_GPUS, "it needs a card")
    with pytest.raises(IncompatibleError, match=r"(?s)^none of 3 .*\n  it needs c\+\+\n  it needs a card$"):
        choose([(release("3"), TOOLS), (release("2"), card), (release("1"), TOOLS)])


def test_a_beta_waits_until_it_is_asked_for():
    beta = replace(release("3"), channel="beta", rank=9)
    assert choose([(beta, YES), (release("1"), YES)]).release.version == "1"
    assert choose([(beta, YES), (release("1"), YES)], channel="nightly").release.version == "3"
    assert choose([(beta, YES), (release("1"), NO)]).release.version == "3"
    with pytest.raises(InstallError, match="engine-any@1 could be taken, but no hashes"):
        choose([(beta, YES), (release("1", UNPINNED), YES)])


def test_what_is_too_recent_is_passed_over():
    until = datetime(2030, 6, 1, tzinfo=UTC)
    young = replace(release("3"), published="2030-06-02T00:00:00+00:00")
    old = replace(release("2"), published="2030-05-30T00:00:00+00:00")
    shipped = release("1")

    choice = choose([(young, YES), (old, YES), (shipped, YES)], published_until=until)
    assert choice.release is old
    assert choice.remarks[0].startswith("engine-any@3 was published, or first seen here, on 2030-06-02")
    assert choose([(young, YES), (shipped, YES)], published_until=until).release is shipped
    assert choose([(young, YES)]).release is young
    with pytest.raises(NotFoundError, match="every release that matches is too recent: engine-any@3 was published"):
        choose([(young, YES)], published_until=until)


WHEELS = Recipe((Package("wheel", "1", ("aa",)),))


def test_a_wheel_goes_first_where_it_is_preferred():
    built, wheel, another = release("2"), release("1", WHEELS), release("1", WHEELS, engine="other")
    ranked = [(built, YES), (another, YES), (wheel, YES)]

    assert choose(ranked).release is built
    choice = choose(ranked, prefer="wheel")
    assert choice.release is wheel
    assert "engine-any@2 would rank higher, but is built from source, and a wheel is preferred" in choice.remarks

    unpinned = [(built, YES), (release("1", UNPINNED), YES)]
    choice = choose(unpinned, prefer="wheel")
    assert choice.release is built
    assert choice.remarks[0] == (
        "a wheel is preferred, but engine-any@1 needs --allow-unpinned, so engine-any@2 is built from source"
    )
    assert choose(unpinned, prefer="wheel", allow_unpinned=True).release.version == "1"
    assert choose([(built, YES), (wheel, NO)], prefer="wheel").release is built
    assert choose([(wheel, YES), (built, YES)], prefer="wheel").release is wheel


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
    held = selection.with_hold("engine-any@2", Hold("it crashes"))
    assert make_plan(release("2"), Path("/home"), ["engine-any@1"], held).selects == ()
    assert make_plan(release("2", UNPINNED), Path("/home"), [], Selection()).unpinned == ("somewhere",)


@pytest.mark.parametrize(
    ("build_s", "cores", "expected"),
    [(None, None, 60), (None, 2, 60), (None, 4, 30), (None, 1, 120), (None, 500, 9), (42.0, 4, 42.0)],
)
def test_how_long_a_build_will_take(build_s, cores, expected):
    """As long as it took here, or else as long as elsewhere, for this machine's number of processors."""
    plan = make_plan(release("2"), Path("/home"), [], Selection(), build_s=build_s, cores=cores)
    assert plan.expected_build_s == expected
