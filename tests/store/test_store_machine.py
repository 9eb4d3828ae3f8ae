"""Random sequences of what can be done to a store, beside a sketch of what should be.

Installing, repairing, serving and cleaning up are Paceline's own; what uv and a worker would do is a few lines here.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from paceline.engine import Engine
from paceline.errors import InstallError, InUseError, PacelineError, SmokeTestError, StoreError, WorkerDied
from paceline.loading import LoadConfig
from paceline.manager import installation
from paceline.manager.cleanup import clean_up
from paceline.packages.environment import Environment
from paceline.serving.starting import Starter
from paceline.store import Store, health
from paceline.store.digests import Digests
from paceline.store.manifest import MANIFEST, python_of
from paceline.types import Model, ModelFacts, ModelKind, Recipe, Release, Requirements, WorkerSpec

ALL = ("1.0", "2.0", "3.0", "4.0")
VERSIONS = st.sampled_from(ALL)
MODELS = st.sampled_from(["m", "n"])
FORMAT_OR_MODEL = st.sampled_from([None, None, "m", "n"])
WHOLE, BROKEN, INCOMPLETE = "whole", "a library is missing", "the manifest is missing"


class Sketch:
    """What should be, of one model format: versions in sets and lists; no files, no locks."""

    def __init__(self):
        self.state = {}  # of each version that is there
        self.current, self.history = None, []  # what serves the format, and what did before, newest first
        self.own = {}  # by model: what the user chose for it
        self.stand_ins = {}  # by model: what loaded it, and what did not
        self.worked, self.loaded = set(), {}  # what loaded any model; by model, what loaded it last
        self.pins, self.holds, self.in_use = set(), set(), set()
        self.left = set()  # of the holds: what a rollback left, held until it is selected
        self.used = []  # least recently first

    # --- what follows from it ---

    @property
    def whole(self):
        return {v for v, state in self.state.items() if state == WHOLE}

    @property
    def missing(self):
        return set(ALL) - self.whole

    @property
    def damaged(self):
        return self.state.keys() & self.missing

    @property
    def installed(self):
        return {v for v, state in self.state.items() if state != INCOMPLETE}

    @property
    def selected(self):
        """For the format or any model."""
        return {self.current, *self.own.values(), *self.in_force().values()} - {None}

    def in_force(self):
        """By model, what serves it in the place of what is selected for it."""
        return {m: good for m, (good, bad) in self.stand_ins.items() if self.own.get(m, self.current) == bad}

    def serving(self, model):
        choice = (self.in_force().get(model), self.own.get(model), self.current)
        return next((v for v in choice if v in self.installed), None)

    def last_good(self, among):
        """Of what served before, what loaded a model goes first."""
        usable = [v for v in self.history if v in among - self.holds]
        return next(iter(sorted(usable, key=lambda v: v not in self.worked)), None)

    @property
    def needed(self):
        """What rollback returns to included, or would once it is repaired."""
        last_good = {self.last_good(among) for among in (set(self.state), self.installed, self.whole)}
        return self.state.keys() & (self.selected | self.pins | last_good)

    def idle(self):
        """What nobody needs, least recently used first; what never was used before that, the oldest first."""
        idle = self.installed - self.needed - self.in_use
        return sorted(idle, key=lambda v: (self.used.index(v) if v in self.used else -1, v))

    def is_new(self, version):
        return version == self.current and version not in self.worked

    def tried(self, model):
        """To load the model, in this order."""
        first = self.serving(model)
        others = (self.last_good(self.whole) if self.is_new(first) else None, self.loaded.get(model))
        good = [v for v in others if v in self.whole - self.holds]
        return list(dict.fromkeys([first, *good])) if first else []

    # --- what changes it ---

    def choose(self, version, model=None):
        if model is not None:
            self.own = {m: v for m, v in (self.own | {model: version}).items() if v is not None}
            self.stand_ins.pop(model, None)
        elif version != self.current:
            self.history = [v for v in (self.current, *self.history) if v not in (None, version)]
            self.current = version

    def choose_by_hand(self, version, model=None):
        if model is None and version in self.left:
            self.unhold(version)
        self.choose(version, model)

    def hold(self, version):
        """By hand or because it failed: for good."""
        self.holds.add(version)
        self.left.discard(version)

    def unhold(self, version):
        self.holds.discard(version)
        self.left.discard(version)

    def roll_back(self, version):
        if self.current and self.current > version and self.current not in self.holds:
            self.holds.add(self.current)
            self.left.add(self.current)
        self.return_to(version)

    def return_to(self, version):
        self.current, self.history = version, self.history[self.history.index(version) + 1 :]

    def serve(self, model, able):
        """What of the `able` serves the model from now on; None when none of them is tried."""
        tried = self.tried(model)
        found = next((v for v in tried if v in able), None)
        for version in tried[: tried.index(found) + 1 if found else None]:
            self.use(version)
        if found and found != tried[0]:
            if self.is_new(tried[0]) and found == self.last_good(self.whole):
                self.hold(tried[0])
                self.return_to(found)
            else:
                stood_in = tried[0] == self.in_force().get(model)
                self.stand_ins[model] = (found, self.own.get(model, self.current) if stood_in else tried[0])
        if found:
            self.worked.add(found)
            self.loaded[model] = found
        return found

    def use(self, version):
        self.used = [v for v in self.used if v != version] + [version]

    def forget(self, version):
        """All but its hold."""
        del self.state[version]
        self.current = self.current if self.current != version else None
        self.history, self.used = ([v for v in known if v != version] for known in (self.history, self.used))
        self.own, self.loaded = ({m: v for m, v in known.items() if v != version} for known in (self.own, self.loaded))
        self.stand_ins = {m: pair for m, pair in self.stand_ins.items() if version not in pair}
        self.worked.discard(version)
        self.pins.discard(version)


def rule_for(which, **arguments):
    """A rule for one of the versions that `which` takes from the sketch, whenever there is one."""
    version = st.runner().flatmap(lambda machine: st.sampled_from(sorted(which(machine.should))))

    def decorated(function):
        return precondition(lambda machine: which(machine.should))(rule(version=version, **arguments)(function))

    return decorated


class StoreMachine(RuleBasedStateMachine):
    world = None

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder)
        self.should = Sketch()
        self.uses = {}

    def teardown(self):
        for use in self.uses.values():
            use.release()
        shutil.rmtree(self.folder)

    @invariant()
    def the_store_is_as_it_should_be(self):
        store, should = Store(self.folder), self.should
        there, chosen = {r.version: r for r in store.runtimes()}, store.selection()
        found = {v: WHOLE if health.quick(r.directory).ok else BROKEN for v, r in there.items()}
        assert found | {_version(name): INCOMPLETE for name in store.incomplete()} == should.state
        assert {v for v, r in there.items() if store.in_use_by(r)} == should.in_use & should.installed
        assert {v for v, r in there.items() if store.protection(r, chosen)} == should.needed & should.installed
        kept = {_version(name) for name in store.incomplete() if store.protection_of_incomplete(name, chosen)}
        assert kept == should.needed - should.installed
        last_used = {v: moment for v, r in there.items() if (moment := store.last_used(r))}
        assert sorted(last_used, key=last_used.get) == [v for v in should.used if v in should.installed]
        assert _version(chosen.formats.get("gguf")) == should.current
        assert [_version(i) for i in chosen.previous.get("gguf", ())] == should.history
        assert {m: _version(i) for m, i in chosen.models.items()} == should.own
        stand_ins = {m: (_version(s.runtime), _version(s.instead_of)) for m, s in chosen.stand_ins.items()}
        assert stand_ins == should.stand_ins
        assert {_version(i) for i in chosen.pins} == should.pins
        assert {_version(i) for i in chosen.holds} == should.holds
        assert {_version(i) for i, hold in chosen.holds.items() if hold.until_selected} == should.left
        for model in ("m", "n"):
            serving = store.selected("gguf", model)
            assert (serving and serving.version) == should.serving(model)

    @initialize(order=st.permutations(ALL))
    def begin(self, order):
        """All are installed; the first was selected and loaded one model, the next two another one."""
        for version in ALL:
            self.install(version)
        for version, model in zip(order, ("m", "n", "n"), strict=False):
            self.select(version, None)
            self._serve(model, unable=set())

    # --- what is there ---

    @rule_for(lambda should: should.missing or ALL)
    def install(self, version):
        should = self.should
        if should.state.get(version) != WHOLE:
            if version in should.in_use:
                with pytest.raises(InUseError):
                    self._install(version)
                return
            should.state[version] = WHOLE
        if version not in should.holds and should.current not in should.installed - {version}:
            should.choose(version)
        self._install(version)

    @rule_for(lambda should: should.whole, how=st.sampled_from([BROKEN, INCOMPLETE]))
    def damage(self, version, how):
        (self.store.folder / _id(version) / (MANIFEST if how == INCOMPLETE else "env/engine.so")).unlink()
        self.should.state[version] = how

    @rule_for(lambda should: should.damaged, known=st.booleans(), works=st.booleans())
    def repair(self, version, known, works):
        """`known`: a release of that name is known; `works`: what is installed anew starts."""

        def repair():
            engine = _Bare(starts=works)
            release = _release(version) if known else None
            installation.repair(_id(version), self.store, engine, release=release, cache=self.folder / "cache")

        if version in self.should.in_use:
            with pytest.raises(InUseError):
                repair()
        elif not works or not (known or version in self.should.installed):
            with pytest.raises(InstallError):
                repair()
        else:
            repair()
            self.should.state[version] = WHOLE
            self._date(version)

    @rule_for(lambda should: should.state, force=st.booleans())
    def remove(self, version, force):
        should, removed = self.should, self.store.find(_id(version))

        def remove():
            if removed is not None:
                self.store.remove(removed, force=force)
            else:
                self.store.remove_incomplete(_id(version), force=force)

        if version in should.in_use or (not force and version in should.selected | should.pins):
            with pytest.raises(InUseError):
                remove()
        else:
            remove()
            should.forget(version)

    @precondition(lambda machine: len(machine.should.state) > 1)
    @rule(keep=st.integers(0, 2))
    def clean_up(self, keep):
        should = self.should
        idle = should.idle()
        gone = idle[: max(0, len(idle) - keep)]
        incomplete = set(should.state) - should.installed - should.needed - should.in_use
        (self.store.staging / "engine-linux-cpu@1.0.77").mkdir(parents=True)  # an installation was killed

        done = clean_up(self.store, keep)

        assert [r.version for r in done.runtimes] == gone
        assert {_version(name) for name in done.incomplete} == incomplete
        assert list(self.store.staging.iterdir()) == []
        for version in (*gone, *incomplete):
            should.forget(version)

    # --- which one is used ---

    @rule_for(lambda should: should.installed, model=FORMAT_OR_MODEL)
    def select(self, version, model):
        def select():
            if model is None:
                assert self.store.select(runtime) == (("gguf",) if version != self.should.current else ())
            else:
                self.store.select_for_model(runtime, model)

        runtime = self._runtime(version)
        if version not in self.should.whole:
            with pytest.raises(StoreError):
                select()
            return
        select()
        self.should.choose_by_hand(version, model)

    @rule(model=FORMAT_OR_MODEL)
    def unselect(self, model):
        if model is None:
            self.store.unselect("gguf")
        else:
            self.store.unselect_model(model)
        self.should.choose(None, model)

    @precondition(lambda machine: len(machine.should.installed) > 1)
    @rule()
    def select_latest(self):
        should = self.should
        newer = {v for v in should.whole - should.holds if should.current and v > should.current}
        expected = [max(newer)] if newer and should.current not in should.pins else []
        assert [r.version for r in self.store.select_latest().values()] == expected
        for version in expected:
            should.choose(version)

    @precondition(lambda machine: machine.should.history)
    @rule()
    def roll_back(self):
        target = self.should.last_good(self.should.whole)
        if target is None:
            with pytest.raises(PacelineError, match="no earlier selection"):
                self.store.rollback("gguf")
        else:
            assert self.store.rollback("gguf")["gguf"].version == target
            self.should.roll_back(target)

    @rule(model=MODELS, unable=st.sets(VERSIONS, max_size=2))
    def serve(self, model, unable):
        self._serve(model, unable)

    @rule_for(lambda should: should.whole, model=MODELS)
    def select_what_does_not_load(self, version, model):
        self.select(version, None)
        self._serve(model, {version})

    @rule_for(lambda should: should.installed)
    def use(self, version):
        """Begin to use it, or end."""
        if version in self.should.in_use:
            self.uses.pop(version).release()
        else:
            self.uses[version] = self.store.use(self._runtime(version))
        self.should.in_use ^= {version}
        self.should.use(version)

    @rule(version=VERSIONS, how=st.sampled_from(["hold", "unhold", "pin", "unpin"]))
    def mark(self, version, how):
        """Also what is not there."""
        getattr(self.store, how)(_id(version))
        pins = self.should.pins
        sketched = {"hold": self.should.hold, "unhold": self.should.unhold, "pin": pins.add, "unpin": pins.discard}
        sketched[how](version)

    # --- how ---

    def _runtime(self, version):
        return self.store.get(f"engine@{version}")

    def _install(self, version):
        engine = _Bare(starts=True)
        installation.install(_release(version), self.store, engine, cache=self.folder / "cache")
        self._date(version)

    def _serve(self, model, unable):
        """As a server does; what is whole loads the model, but for the `unable`."""
        able = self.should.whole - unable

        def serve():
            wanted = Model(model, "gguf", self.folder / model, "test", ModelFacts(ModelKind.LLM, 0))
            return asyncio.run(_Serving(self.store, able).start(wanted, LoadConfig(), force=False, others=())).version

        expected = self.should.serve(model, able)
        if expected is None:
            with pytest.raises(PacelineError):
                serve()
        else:
            assert serve() == expected

    def _date(self, version):
        """Let what is older have been installed earlier."""
        installed_at = f"2020-01-0{version[0]}T00:00:00+00:00"
        self.world.change_manifest(self._runtime(version), installed_at=installed_at)


class _Bare(Engine):
    """Without packages; see `_make_environment` and `_start_once`."""

    name = "engine"
    formats = ("gguf",)

    def __init__(self, *, starts):
        self.starts = starts

    def worker(self, runtime):
        return WorkerSpec((str(runtime.python),))


class _Serving(Starter):
    """Starts no process: the `able` load every model."""

    def __init__(self, store, able):
        super().__init__(None, store, None, None, LoadConfig(), patience_s=1.0)
        self._able = able

    async def start_with(self, runtime, model, config, **_):
        self._store.use(runtime).release()
        if runtime.version not in self._able:
            raise WorkerDied("it does not load")
        self._store.note_loaded(runtime, model.format, model.id)
        return runtime


def _make_environment(folder, recipe, **_):
    StoreMachine.world.make_environment(folder, folder.name)
    return Environment(python_of(folder / "env"), None, Digests())


def _start_once(runtime, engine, gpu):
    if not engine.starts:
        raise SmokeTestError("it does not start")
    return {}


def _release(version):
    return Release("engine", version, "linux-cpu", ("gguf",), Requirements(), Recipe())


def _id(version):
    return f"engine-linux-cpu@{version}"


def _version(runtime_id):
    return runtime_id and runtime_id.partition("@")[2]


def test_random_operations_do_what_the_sketch_does(store_world, monkeypatch):
    monkeypatch.setattr(StoreMachine, "world", store_world)
    monkeypatch.setattr(installation, "make_environment", _make_environment)
    monkeypatch.setattr(installation, "start_once", _start_once)
    monkeypatch.setattr(health, "_starts", lambda python, manifest: [])  # it is this very one
    monkeypatch.setattr(os, "fsync", lambda file: None)
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=50, stateful_step_count=30, deadline=None, database=None)
    )
