"""Random sequences of what can be done to a store, beside a model of it of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from paceline.errors import InUseError, NotFoundError
from paceline.store import Store

VERSIONS = st.sampled_from(["1.0", "2.0", "3.0", "4.0"])


class StoreMachine(RuleBasedStateMachine):
    world = None

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder)
        self.installed, self.worked, self.pins, self.holds = set(), set(), set(), set()
        self.current, self.history = None, []

    def teardown(self):
        shutil.rmtree(self.folder)

    @invariant()
    def the_store_says_what_the_model_says(self):
        store = Store(self.folder)
        selected = store.selected("gguf")
        assert {r.version for r in store.runtimes()} == self.installed
        assert (selected and selected.version) == self.current
        chosen = store.selection()
        assert {_version(r) for r in chosen.pins} == self.pins
        assert {_version(r) for r in chosen.holds} == self.holds
        assert [_version(r) for r in chosen.previous.get("gguf", ())] == self.history

    @rule(version=VERSIONS)
    def install(self, version):
        if version not in self.installed:
            runtime = self.world.add(self.store, version)
            self.installed.add(version)
            if self.current is None and version not in self.holds:
                self._choose(version)
                assert self.store.select_where_none(runtime) == ("gguf",)
            else:
                assert self.store.select_where_none(runtime) == ()

    @rule(version=VERSIONS)
    def select(self, version):
        if version in self.installed:
            assert self.store.select(self._runtime(version)) == (("gguf",) if version != self.current else ())
            self._choose(version)

    @rule()
    def select_latest(self):
        newer = [v for v in self.installed - self.holds if self.current and v > self.current]
        expected = max(newer) if newer and self.current not in self.pins else None
        assert [r.version for r in self.store.select_latest().values()] == ([expected] if expected else [])
        if expected:
            self._choose(expected)

    @rule()
    def load(self):
        if self.current:
            self.store.note_loaded(self._runtime(self.current), "gguf")
            self.worked.add(self.current)

    @rule()
    def roll_back(self):
        good = [v for v in self.history if v in self.worked & self.installed - self.holds]
        if not good:
            with pytest.raises(NotFoundError):
                self.store.rollback("gguf")
            return
        assert self.store.rollback("gguf")["gguf"].version == good[0]
        self.current, self.history = good[0], self.history[self.history.index(good[0]) + 1 :]

    @rule()
    def unselect(self):
        self.store.unselect("gguf")
        if self.current:
            self.current, self.history = None, [self.current, *self.history]

    @rule(version=VERSIONS, force=st.booleans())
    def remove(self, version, force):
        if version not in self.installed:
            return
        if not force and (version == self.current or version in self.pins):
            with pytest.raises(InUseError):
                self.store.remove(self._runtime(version))
            return
        self.store.remove(self._runtime(version), force=force)
        for known in (self.installed, self.worked, self.pins):
            known.discard(version)
        self.current = self.current if self.current != version else None
        self.history = [v for v in self.history if v != version]

    @rule(version=VERSIONS, on=st.booleans())
    def pin(self, version, on):
        if version in self.installed:
            (self.store.pin if on else self.store.unpin)(self._runtime(version).id)
            (self.pins.add if on else self.pins.discard)(version)

    @rule(version=VERSIONS, on=st.booleans())
    def hold(self, version, on):
        (self.store.hold if on else self.store.unhold)(f"engine-linux-cpu@{version}")
        (self.holds.add if on else self.holds.discard)(version)

    @rule()
    def start_again(self):
        self.store = Store(self.folder)

    def _runtime(self, version):
        return self.store.get(f"engine@{version}")

    def _choose(self, version):
        if version != self.current:
            earlier = [self.current, *self.history] if self.current else self.history
            self.current, self.history = version, [v for v in earlier if v != version]


def _version(runtime_id):
    return runtime_id.partition("@")[2]


def test_random_operations_do_what_the_model_does(store_world, monkeypatch):
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setattr(StoreMachine, "world", store_world)
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None, database=None)
    )
