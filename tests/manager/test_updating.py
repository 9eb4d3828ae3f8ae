"""Sources that are asked, updates that are made: over the tiny engine, really installed."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace

import pytest

from paceline.errors import SmokeTestError
from paceline.manager import updating
from paceline.manager.installation import install
from paceline.plugins import Plugins
from paceline.preferences import Policy
from paceline.registry import upstream
from paceline.store import Store, transaction


@dataclass
class Says:
    """A source that gives this answer."""

    answer: updating.Answer
    name: str = "a source"

    def newer(self, runtimes):
        self.asked = [r.id for r in runtimes]
        return self.answer


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


@pytest.fixture
def plugins(tiny):
    return Plugins((), {"tiny": tiny.engine})


@pytest.fixture
def installed(tiny, store):
    return install(tiny.release("1.0"), store, tiny.engine)


def find(store, plugins, *sources, **policy):
    selected = updating.selected_runtimes(store)
    return updating.find_updates(selected, store, plugins, sources, Policy(**policy))


def test_what_sources_say_is_told_and_the_registry_counts_all_the_same(tiny, store, plugins, installed):
    tiny.offer(tiny.release("2.0"))
    silent = updating.Problem("a source", updating.Failure.UNANSWERED, "no route to host")
    forged = updating.Problem("another", updating.Failure.UNTRUSTED, "the signature is not of a key we know")
    first, second = Says(updating.Answer(problems=(silent,))), Says(updating.Answer(problems=(forged,)))

    found = find(store, plugins, first, second)

    assert (first.asked, second.asked) == ([installed.id], [installed.id])
    assert found.problems == (silent, forged)
    assert [(u.runtime.id, u.release.id) for u in found.updates] == [(installed.id, "tiny-any-cpu@2.0")]


def test_nothing_selected_asks_nobody(store, plugins):
    source = Says(updating.Answer())
    assert find(store, plugins, source) == updating.Findings()
    assert not hasattr(source, "asked")


def test_an_update_takes_over_what_the_old_runtime_still_serves(tiny, store, plugins, installed):
    tiny.offer(tiny.release("2.0"))
    (update,) = find(store, plugins).updates
    other = install(tiny.release("1.5"), store, tiny.engine)
    store.select(other)  # somebody chose while the update was on its way

    made = updating.apply(update, store, plugins)

    assert (made.runtime.id, made.formats) == ("tiny-any-cpu@2.0", ())
    assert store.selection().formats == {"tiny": other.id}
    store.select(installed)
    assert updating.apply(update, store, plugins).formats == ("tiny",)
    assert store.selection().formats == {"tiny": made.runtime.id}


@pytest.mark.parametrize("mark", ["pin the old one", "hold the new one"])
def test_a_pin_or_a_hold_counts_also_when_it_comes_while_the_update_is_made(tiny, store, plugins, installed, mark):
    tiny.offer(tiny.release("2.0"))
    (update,) = find(store, plugins).updates

    def progress(*_, **__):
        store.pin(installed.id) if mark.startswith("pin") else store.hold(update.release.id)

    made = updating.attempt(update, store, plugins, progress)

    assert (made.runtime.id, made.formats) == ("tiny-any-cpu@2.0", ())
    assert store.selection().formats == {"tiny": installed.id}


def test_what_a_release_dropped_stays_with_the_old_runtime(tiny, store, plugins):
    both = {"formats": ("tiny", "other")}
    old = install(replace(tiny.release("1.0"), **both), store, tiny.engine)
    tiny.offer(tiny.release("2.0"))

    found = find(store, plugins)
    made = updating.apply(found.updates[0], store, plugins)

    assert made.formats == ("tiny",)
    assert store.selection().formats == {"tiny": made.runtime.id, "other": old.id}
    again = find(store, plugins)
    assert (again.updates, [k.reason for k in again.kept if k.runtime.id == old.id]) == (
        (),
        ["2.0 is newer, but does not serve OTHER"],
    )


def test_an_update_that_does_not_start_changes_nothing(tiny, store, plugins, installed):
    tiny.offer(tiny.release("2.0", crash="yes"))
    (update,) = find(store, plugins).updates

    with pytest.raises(SmokeTestError, match="exit code 1"):
        updating.apply(update, store, plugins)

    assert store.selection().formats == {"tiny": installed.id}
    assert [r.id for r in store.runtimes()] == [installed.id]


def test_what_the_index_has_and_cannot_be_remembered_is_a_problem(tiny, store, plugins, installed, monkeypatch):
    recipe = replace(tiny.release().recipe, roots=("tinyengine==1.0.0",))
    tiny.offer(replace(tiny.release("1.0"), recipe=recipe))
    monkeypatch.setattr(updating.upstream, "newest", lambda *_, **__: upstream.Newest("2.0", tiny.release("2.0")))

    def full(step, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with transaction.observed(full):
        (problem,) = find(store, plugins, updating.PackageIndex(plugins, store)).problems

    assert problem.failure is updating.Failure.UNANSWERED
    assert "upstream.json: No space left" in problem.message


def test_the_policy_decides(tiny, store, plugins, installed):
    tiny.offer(replace(tiny.release("2.0"), channel="beta"))
    assert find(store, plugins).updates == ()
    (update,) = find(store, plugins, channel="beta").updates
    assert update.release.version == "2.0"
