"""Runtimes linked to environments that were built by hand: real ones, made here with uv."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from paceline.errors import InstallError, NotFoundError, SmokeTestError, UsageError
from paceline.manager.cleanup import plan_cleanup
from paceline.manager.installation import install, repair
from paceline.manager.linking import link
from paceline.manager.updates import plan_updates
from paceline.store import Store, health

ID = "tiny-mine@linked"


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


@pytest.fixture
def by_hand(tiny, tmp_path):
    """A function that makes an environment with the tiny engine, built as `settings` say; without any, without it."""

    def make(name="mine", *, holds=True, **settings):
        folder = tmp_path / "hand" / name
        uv(tiny, "venv", folder)
        if holds:
            built = [f"--config-settings={key}={value}" for key, value in settings.items()]
            uv(tiny, "pip", "install", "--python", folder, *built, "tinyengine", "tinydep")
        return folder

    return make


def uv(tiny, *arguments):
    argv = [find_uv_bin(), "-q", *map(str, arguments), "--cache-dir", str(tiny.cache / "by-hand")]
    argv += ["--python", sys.executable] if "venv" in arguments else []
    subprocess.run(argv, check=True, env={**os.environ, **tiny.environment()})


def everything(folder):
    return {
        str(p.relative_to(folder)): str(p.readlink()) if p.is_symlink() else hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_symlink() or p.is_file()
    }


def test_a_link_is_a_runtime_and_nothing_in_it_changes(tiny, store, by_hand):
    folder = by_hand()
    before = everything(folder)

    linked = link("mine", folder, store, {"tiny": tiny.engine})

    assert (linked.id, linked.linked, linked.formats) == (ID, folder, ("tiny",))
    assert linked.python == folder / "bin" / "python"
    assert store.selected("tiny") == linked
    assert health.full(linked.directory).ok
    assert store.manifest(linked)["linked"]["version"] == "1.0.0"
    assert [p.name for p in linked.directory.iterdir()] == ["manifest.json"]
    assert everything(folder) == before


def test_the_interpreter_itself_and_a_runtime_folder_will_do(tiny, store, by_hand):
    folder = by_hand()
    assert link("one", folder / "bin" / "python", store, {"tiny": tiny.engine}).python == folder / "bin" / "python"
    folder.parent.joinpath("runtime").mkdir()
    folder.parent.joinpath("runtime", "env").symlink_to(folder)
    two = link("two", folder.parent / "runtime", store, {"tiny": tiny.engine})
    assert two.python == folder.parent / "runtime" / "env" / "bin" / "python"


def test_the_same_name_again_leads_to_the_new_place(tiny, store, by_hand):
    link("mine", by_hand("first"), store, {"tiny": tiny.engine})
    again = link("mine", by_hand("second"), store, {"tiny": tiny.engine})
    assert [r.linked for r in store.runtimes()] == [again.linked]
    assert again.linked.name == "second"
    assert list(store.staging.iterdir()) == []


class Variant:
    """The tiny engine by another name."""

    def __init__(self, engine):
        self._engine, self.name = engine, f"{engine.name}-fast"

    def __getattr__(self, name):
        return getattr(self._engine, name)


class TestWhatIsRefused:
    def test_an_id_that_a_link_of_another_engine_has(self, tiny, store, by_hand):
        engines = {"tiny": tiny.engine, "tiny-fast": Variant(tiny.engine)}
        first, second = by_hand("first"), by_hand("second")
        there = link("fast-x", first, store, engines, engine="tiny")

        with pytest.raises(
            UsageError, match=f"{there.id} is there already, of the engine tiny and linked to"
        ) as caught:
            link("x", second, store, engines, engine="tiny-fast")
        assert f"paceline runtime remove {there.id}" in caught.value.help
        assert [r.linked for r in store.runtimes()] == [first]
        link("fast-x", second, store, engines, engine="tiny")
        assert [r.linked for r in store.runtimes()] == [second]

    def test_no_place(self, tiny, store, tmp_path):
        with pytest.raises(UsageError, match="~nobody-of-this-name/env does not exist"):
            link("mine", Path("~nobody-of-this-name/env"), store, {"tiny": tiny.engine})
        with pytest.raises(UsageError, match="does not exist"):
            link("mine", tmp_path / "nowhere", store, {"tiny": tiny.engine})
        with pytest.raises(UsageError, match="is no environment: it has no bin/python"):
            link("mine", tmp_path, store, {"tiny": tiny.engine})

    def test_no_python(self, tiny, store, tmp_path):
        program = tmp_path / "python"
        program.write_text("#!/bin/sh\necho I am a shell >&2\n")
        with pytest.raises(UsageError, match=r"does not start: .*Permission denied"):
            link("mine", program, store, {"tiny": tiny.engine})
        program.chmod(0o755)
        with pytest.raises(UsageError, match="is no Python that runs: I am a shell"):
            link("mine", program, store, {"tiny": tiny.engine})
        program.write_text("#!/bin/sh\nprintf '\\377' && printf 'no UTF-8 \\377' >&2\n")
        with pytest.raises(UsageError, match="is no Python that runs: no UTF-8 \N{REPLACEMENT CHARACTER}"):
            link("mine", program, store, {"tiny": tiny.engine})

    def test_no_engine(self, tiny, store, by_hand):
        folder = by_hand(holds=False)
        with pytest.raises(NotFoundError, match=r"holds the package of no engine: tiny \(tinyengine\)"):
            link("mine", folder, store, {"tiny": tiny.engine})
        with pytest.raises(SmokeTestError, match="is not linked: the runtime does not work here"):
            link("mine", folder, store, {"tiny": tiny.engine}, engine="tiny")
        assert store.runtimes() == ()

    def test_an_engine_that_does_not_start(self, tiny, store, by_hand):
        with pytest.raises(SmokeTestError, match="is not linked") as caught:
            link("mine", by_hand(crash="yes"), store, {"tiny": tiny.engine})
        assert "the engine has no wheels" in caught.value.help
        assert store.runtimes() == ()

    @pytest.mark.parametrize("name", ["", "a b", "../up", "a@b", "-x", "a/b"])
    def test_no_name(self, tiny, store, tmp_path, name):
        with pytest.raises(UsageError, match="is no name for a runtime"):
            link(name, tmp_path, store, {"tiny": tiny.engine})

    def test_the_name_of_a_release(self, tiny, store, by_hand):
        with pytest.raises(UsageError, match="tiny-any-cpu is the name of releases"):
            link("any-cpu", by_hand(), store, {"tiny": tiny.engine}, taken={"tiny-any-cpu"})

    def test_an_installed_runtime(self, tiny, store):
        installed = install(tiny.release(), store, tiny.engine, cache=tiny.cache)
        with pytest.raises(UsageError, match="is a runtime that Paceline installed"):
            link("mine", installed.directory, store, {"tiny": tiny.engine})


class TestWhatIsLeftAlone:
    def test_by_updates_and_clean_up(self, tiny, store, by_hand):
        linked = link("mine", by_hand(), store, {"tiny": tiny.engine})
        updates, (kept,) = plan_updates({"tiny": linked}, [])
        assert updates == ()
        assert "which is its owner's to update" in kept.reason
        store.unselect("tiny")
        plan = plan_cleanup(store, 0)
        assert plan.runtimes == ()
        assert plan.kept == (f"{ID} is linked to {linked.linked}",)

    def test_by_repair(self, tiny, store, by_hand):
        linked = link("mine", by_hand(), store, {"tiny": tiny.engine})
        with pytest.raises(InstallError, match="is not repaired: it is linked to"):
            repair(linked.id, store, tiny.engine)

    def test_by_removal(self, tiny, store, by_hand):
        linked = link("mine", by_hand(), store, {"tiny": tiny.engine})
        before = everything(linked.linked)
        store.remove(linked, force=True)
        assert store.runtimes() == ()
        assert everything(linked.linked) == before


class TestAnEnvironmentThatIsGone:
    def test_moved(self, tiny, store, by_hand):
        linked = link("mine", by_hand(), store, {"tiny": tiny.engine})
        linked.linked.rename(linked.linked.with_name("elsewhere"))
        for check in (health.glance, health.quick, health.full):
            state = check(linked.directory)
            assert (state.state, state.problems) == ("broken", (f"what it is linked to is gone: {linked.linked}",))

    def test_whose_base_was_removed(self, tiny, store, by_hand):
        linked = link("mine", by_hand(), store, {"tiny": tiny.engine})
        linked.python.unlink()
        linked.python.symlink_to("/gone/python3")
        (problem,) = health.quick(linked.directory).problems
        assert problem.startswith("the interpreter of what it is linked to is gone")
        assert "/gone/python3" in problem

    def test_that_has_another_python_now(self, tiny, store, by_hand):
        linked = link("mine", by_hand(), store, {"tiny": tiny.engine})
        other = linked.linked / "bin" / "python3.99"
        other.write_text("")
        linked.python.unlink()
        linked.python.symlink_to(other)
        (problem,) = health.quick(linked.directory).problems
        assert "is Python 3.99 now" in problem


def test_the_commands(tiny, by_hand, tmp_path):
    folder = by_hand()
    assert tiny.paceline("runtime", "get").returncode == 0
    done = tiny.paceline("runtime", "link", "mine", str(folder))
    assert done.returncode == 0, done.stderr
    assert f"Linked {ID} to {folder}, which holds tiny 1.0.0" in done.stdout
    assert f"To use it for TINY: paceline runtime select {ID}" in done.stdout
    assert f"Selected {ID} for TINY" in tiny.paceline("runtime", "select", "mine").stdout
    listed = tiny.paceline("runtime", "ls").stdout
    assert f"installed, linked to {folder}" in listed
    (found,) = [r for r in json.loads(tiny.paceline("runtime", "ls", "--json").stdout) if r["id"] == ID]
    assert (found["linked"], found["selected_for"]) == (str(folder), ["tiny"])
    assert "its owner's to update" in tiny.paceline("--offline", "runtime", "update", "--dry-run").stdout

    folder.rename(folder.with_name("moved"))
    assert (
        f"broken, linked to {folder}; what it is linked to is gone: {folder}" in tiny.paceline("runtime", "ls").stdout
    )
    verified = tiny.paceline("runtime", "verify")
    assert (verified.returncode, "runtime repair" in verified.stdout) == (1, False)
    assert tiny.paceline("runtime", "repair").stdout == "tiny-any-cpu@1.0.0: is whole\n"
    refused = tiny.paceline("runtime", "repair", "mine")
    assert (refused.returncode, "is its owner's" in refused.stderr) == (1, True)
    bundled = tiny.paceline("bundle", "create", ID, "-o", str(tmp_path / "b"))
    assert (bundled.returncode, f"cannot be bundled: it is linked to {folder}, which" in bundled.stderr) == (1, True)
    removed = tiny.paceline("runtime", "remove", "mine", "--force")
    assert removed.stdout == f"Unlinked {ID}; {folder} stays as it is\n"

    nothing = tiny.paceline("runtime", "link", "mine", str(by_hand("empty", holds=False)))
    assert (nothing.returncode, "holds the package of no engine" in nothing.stderr) == (3, True)


@pytest.mark.runtime
def test_a_real_llama_cpp(llama_cpp_runtime, tmp_path):
    from paceline import plugins

    linked = link("own-build", llama_cpp_runtime.directory, Store(tmp_path), plugins.load().engines)

    assert linked.id == "llama.cpp-own-build@linked"
    assert "draft" in linked.features
    assert linked.python == llama_cpp_runtime.python
