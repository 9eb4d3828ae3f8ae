"""Every check of the doctor, with its fault really there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from paceline import doctor, paths
from paceline.doctor import CHECKS, Patient, Status, examine, mend
from paceline.engine import Engine
from paceline.packages.index import ASKED_FOR
from paceline.plugins import Plugin, Plugins, PluginState
from paceline.registry.trust import make_trusted, remember_trust
from paceline.store import Store
from paceline.types import GpuRequirement, Requirements, WorkerSpec

OK, NOTE, PROBLEM = Status.OK, Status.NOTE, Status.PROBLEM
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


class Bare(Engine):
    """The engine of the made runtimes; `known` are its releases."""

    name = "engine"
    formats = ("gguf",)
    known = ()

    def releases(self):
        return self.known

    def worker(self, runtime):
        return WorkerSpec(("true",))


@pytest.fixture
def patient(tiny):
    models = tiny.home / "models"
    active = Plugin("tiny", "tiny_plugin", "tiny-plugin", "1.0", PluginState.ACTIVE, ("tiny",))
    loaded = Plugins((active,), {"tiny": tiny.engine, "engine": Bare()})
    return Patient(Store(tiny.home), tiny.cache, (models,), loaded, {}, ("127.0.0.1", _free_port()))


def told(patient, check, status):
    """The findings of one check with one status, as lines."""
    return [f"{f.message} -> {f.help}" for f in examine(patient, [check]) if f.status is status]


def test_nothing_is_wrong_with_a_fresh_home(patient):
    findings = list(examine(patient, [name for name in CHECKS if name != "index"]))
    assert [f for f in findings if f.status is PROBLEM] == []
    assert {f.check for f in findings} == set(CHECKS) - {"index"}
    assert not patient.store.home.exists()  # and looking made nothing


def test_a_check_that_fails_is_a_finding(patient, monkeypatch):
    monkeypatch.setitem(doctor.CHECKS, "clock", lambda patient: 1 // 0)
    assert told(patient, "clock", PROBLEM) == [
        "this check failed itself: ZeroDivisionError: integer division or modulo by zero -> report it, with this line"
    ]


def test_what_changes_the_behaviour_is_told_without_passwords(patient):
    environ = {
        "PACELINE_HOME": "/h",
        "UV_DEFAULT_INDEX": "https://me:secret@example.org/simple",
        "https_proxy": "http://proxy:1",
        "UV_INDEX_TOKEN": "secret",
        "PIP_FIND_LINKS": "/wheels",
        "PATH": "/bin",
    }
    unheeded = {"PIP_DEFAULT_TIMEOUT": "9", "PIP_INDEX_URL": "https://overruled.example", "UV_NO_CACHE": "1"}
    environ |= unheeded
    lines = told(replace(patient, environ=environ), "environment", NOTE)
    assert len(lines) == 5
    assert not [name for name in unheeded if name in "".join(lines)]
    assert "secret" not in "".join(lines)
    assert "UV_DEFAULT_INDEX=https://…@example.org/simple" in "".join(lines)
    assert told(patient, "environment", OK)


@pytest.mark.parametrize("check", ["home", "cache"])
def test_a_folder_that_is_a_file(patient, check):
    folder = patient.store.home if check == "home" else patient.cache
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")
    (line,) = told(patient, check, PROBLEM)
    assert f"{folder} cannot be used" in line
    assert f"PACELINE_{check.upper()}" in line


@pytest.mark.parametrize("check", ["home", "cache"])
def test_a_folder_that_cannot_be_written(patient, check, monkeypatch):
    folder = patient.store.home if check == "home" else patient.cache
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    code = (
        "import os, sys; from pathlib import Path; from paceline.doctor import Patient, examine; "
        "from paceline.plugins import Plugins; from paceline.store import Store; "
        "p = Patient(Store(Path(sys.argv[1])), Path(sys.argv[2]), (), Plugins(()), {}); "
        "import paceline.doctor.surroundings; os.geteuid() or os.setuid(65534); "
        "print([f.message for f in examine(p, [sys.argv[3]])])"
    )
    for parent in [folder, *folder.parents][:-2]:  # somebody else must get as far as the folder
        if ROOT and parent.is_relative_to(Path("/tmp")):
            parent.chmod(parent.stat().st_mode | 0o555)
    argv = [sys.executable, "-c", code, str(patient.store.home), str(patient.cache), check]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    folder.chmod(0o755)
    assert f"{folder} cannot be written: Permission denied" in said.stdout, said.stderr


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_a_home_on_two_file_systems(patient, tmp_path):
    other = Path("/dev/shm") / f"doctor-{os.getpid()}"
    if other.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system")
    other.mkdir()
    try:
        patient.store.home.mkdir(parents=True)
        patient.store.folder.symlink_to(other)
        assert "are not on one file system" in told(patient, "home", PROBLEM)[0]
        assert "runtimes share no files" in told(replace(patient, cache=other), "cache", NOTE)[0]
    finally:
        other.rmdir()


def test_what_the_cache_takes(patient):
    assert f"the cache {patient.cache} holds nothing" in told(patient, "disk", OK)[0]
    part = patient.cache / "packages" / "files" / "a" / "part"
    part.parent.mkdir(parents=True)
    part.touch()
    os.truncate(part, 2 * 10**9)
    assert "holds 2.0 GB of fetched packages; 0.0 GB of it" in told(patient, "disk", OK)[0]


def test_a_disk_without_room(patient, store_world):
    runtime = store_world.add(patient.store)
    store_world.change_manifest(runtime, size_bytes=10**18)
    assert "an update may need 1000000000.0 GB" in told(patient, "disk", PROBLEM)[0]


@pytest.mark.parametrize(
    ("state", "status"),
    [(PluginState.BROKEN, PROBLEM), (PluginState.MISSING, PROBLEM), (PluginState.DISABLED, NOTE)],
)
def test_a_plugin_that_is_not_active(patient, state, status):
    bad = Plugin("bad", None, None, None, state, error="No module named 'bad'")
    (line,) = told(replace(patient, plugins=Plugins((bad,))), "plugins", status)
    assert f"the plugin bad is {state}: No module named 'bad'" in line
    assert ("PACELINE_PLUGINS" in line) == (state is not PluginState.BROKEN)


def test_damaged_incomplete_and_orphaned_runtimes(patient, store_world):
    store = patient.store
    damaged, orphan = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    (damaged.directory / "env" / "engine.so").unlink()
    (store.folder / "engine-linux-cpu@3.0").mkdir()
    lines = told(patient, "runtimes", PROBLEM)
    assert len(lines) == 2
    assert "1.0 is broken: env/engine.so: No such file or directory -> `paceline runtime repair" in lines[0]
    assert "3.0 is incomplete: manifest.json is missing" in lines[1]
    assert told(patient, "runtimes", OK) == [f"{orphan.id} is whole -> None"]
    lines = told(replace(patient, plugins=Plugins(())), "runtimes", PROBLEM)
    assert f"no plugin provides the engine engine of {orphan.id}" in "".join(lines)


def test_a_selection_that_is_damaged_or_dangles(patient, store_world):
    store = patient.store
    runtime = store_world.add(store)
    store.select(runtime)
    store.select_for_model(runtime, "model")
    store.pin("engine-linux-cpu@9")
    (store.folder / runtime.id).rename(store.home / "away")
    lines = told(patient, "selection", PROBLEM)
    assert [line.partition(" is not")[0] for line in lines] == [
        f"{runtime.id}, selected for GGUF,",
        f"{runtime.id}, selected for the model model,",
    ]
    assert "unpin engine-linux-cpu@9" in told(patient, "selection", NOTE)[0]
    (store.home / "selection.json").write_text("{")
    assert "cannot be read" in told(patient, "selection", PROBLEM)[0]


def test_what_stands_in_and_what_is_held_is_told_with_the_reason(patient, store_world):
    store = patient.store
    old, new = store_world.add(store, "1.0"), store_world.add(store, "2.0")
    store.select(new)
    store.stand_in(old, new, "gguf", "robin", "a new quantization")
    store.hold("engine-linux-cpu@3.0", "did not pass its smoke test: it crashed")
    stands_in, held = told(patient, "selection", NOTE)
    assert stands_in.startswith(f"robin is served by {old.id} since ")
    assert f"because {new.id} did not load it: a new quantization -> " in stands_in
    assert f"`paceline runtime unselect --model robin` has {new.id} tried again" in stands_in
    assert held.startswith("engine-linux-cpu@3.0 is held since ")
    assert "did not pass its smoke test: it crashed -> `paceline runtime unhold engine-linux-cpu@3.0`" in held
    assert told(patient, "selection", PROBLEM) == []


def test_a_newer_version_is_known(patient, tiny, store_world):
    store_world.add(patient.store, "1.0", platform="any-cpu")
    patient.plugins.engines["engine"].known = (replace(tiny.release("1.10"), engine="engine", formats=("gguf",)),)
    (line,) = told(patient, "updates", NOTE)
    said = "engine-any-cpu is installed as 1.0, and 1.10 is known -> "
    assert line == f"{said}paceline runtime get engine-any-cpu@1.10"  # updates look at what is selected
    patient.store.select(patient.store.get("engine"))
    assert told(patient, "updates", NOTE) == [f"{said}paceline runtime update engine-any-cpu"]
    patient.store.pin("engine-any-cpu@1.0")
    (line,) = told(patient, "updates", NOTE)
    assert line.startswith(f"{said}it is pinned: `paceline runtime unpin engine-any-cpu@1.0`")
    patient.store.unpin("engine-any-cpu@1.0")
    elsewhere = Requirements(os="macos" if sys.platform != "darwin" else "linux")
    patient.plugins.engines["engine"].known += (
        replace(tiny.release("1.20"), engine="engine", formats=("gguf",), requires=elsewhere),
    )
    assert told(patient, "updates", NOTE) == [f"{said}paceline runtime update engine-any-cpu"]

    beta = replace(tiny.release("1.11"), engine="engine", formats=("gguf",), channel="beta")
    patient.plugins.engines["engine"].known += (beta,)
    patient.store.hold("engine-any-cpu@1.10", "it crashes")
    assert told(patient, "updates", NOTE) == []  # what an update would not take
    (line,) = told(replace(patient, environ={"PACELINE_UPDATE_CHANNEL": "beta"}), "updates", NOTE)
    assert "and 1.11 is known" in line


def test_of_what_only_its_owner_renews_no_newer_version_is_told(patient, tiny, store_world):
    store_world.add(patient.store, "1.0+local.1a2b3c4d", platform="any-cpu")
    patient.plugins.engines["engine"].known = (replace(tiny.release("1.10"), engine="engine"),)
    assert told(patient, "updates", NOTE) == []


def test_a_link_that_leads_nowhere(patient, store_world, tmp_path):
    runtime = store_world.add(patient.store, "linked")
    gone = str(tmp_path / "gone")
    store_world.change_manifest(runtime, linked={"path": gone, "python": f"{gone}/bin/python", "version": "1.0"})
    (line,) = told(patient, "runtimes", PROBLEM)
    assert f"what it is linked to is gone: {gone} -> mend {gone}, link it again" in line
    assert f"unlink it: `paceline runtime remove {runtime.id}`" in line


def test_what_keeps_several_checks_from_their_work_is_told_once(patient):
    patient.store.home.mkdir(parents=True)
    (patient.store.home / "selection.json").write_text("{")
    found = [f.message for f in examine(patient, ["selection", "updates", "machine"]) if f.status is PROBLEM]
    assert len(found) == 1
    assert "selection.json cannot be read" in found[0]


def test_each_remark_on_where_releases_come_from_has_its_own_way_out(patient):
    home = patient.store.home
    remember_trust(make_trusted(home, "https://example.org/registry", {}, "acme"))
    (home / "upstream.json").write_text("{")
    unverified, damaged = told(patient, "updates", NOTE)
    assert unverified == (
        "nothing of the registry acme was verified yet -> `paceline registry refresh acme` asks it again"
    )
    assert damaged.startswith(f"the registry {home / 'upstream.json'} is no JSON: ")
    assert damaged.endswith(" -> `paceline runtime update --check` asks the package index and writes it anew")


def test_leftovers_are_told_and_deleted_on_demand(patient, store_world):
    runtime = store_world.add(patient.store)
    (patient.store.staging / "engine@2.77").mkdir(parents=True)
    use = patient.store.use(runtime)
    ended = patient.store.home / "uses" / runtime.id / "1.abc.lock"
    ended.write_text("")

    (line,) = told(patient, "leftovers", NOTE)
    assert "staging/engine@2.77" in line
    assert "1.abc.lock" in line
    assert mend(patient) == 2
    assert told(patient, "leftovers", NOTE) == []
    assert patient.store.in_use_by(runtime) == (os.getpid(),)  # what is in use stays so
    use.release()


def test_an_installation_in_the_future(patient, store_world):
    runtime = store_world.add(patient.store)
    store_world.change_manifest(runtime, installed_at="2999-01-01T00:00:00+00:00")
    assert "was installed on 2999-01-01" in told(patient, "clock", NOTE)[0]
    store_world.change_manifest(runtime, installed_at="yesterday")
    assert told(patient, "clock", OK)


def test_models_that_cannot_be_read_and_folders_that_are_not_there(patient, tmp_path):
    from paceline.formats.gguf_format import GgufFormat

    (folder,) = patient.models
    (folder / "me" / "whole").mkdir(parents=True)
    shutil.copy(min(paths.samples().glob("*.gguf")), folder / "me" / "whole")
    (folder / "me" / "cut" / "cut.gguf").parent.mkdir(parents=True)
    (folder / "me" / "cut" / "cut.gguf").write_bytes(b"GGUF\3")
    plugins = replace(patient.plugins, formats={"gguf": GgufFormat()})
    sick = replace(patient, models=(folder, tmp_path / "gone"), plugins=plugins)
    lines = told(sick, "models", PROBLEM)
    assert f"the folder {tmp_path / 'gone'} of PACELINE_EXTRA_MODELS does not exist" in lines[0]
    assert "cut.gguf" in lines[1]
    assert "no installed runtime serves the GGUF models" in told(sick, "models", NOTE)[0]


def test_drivers_and_compilers_that_keep_better_releases_from_running(patient, tiny):
    cuda = replace(tiny.release("2.0"), platform="cuda13", rank=9)
    cuda = replace(cuda, requires=Requirements(gpu=GpuRequirement("nvidia", min_driver="580")))
    built = replace(tiny.release("3.0"), rank=8, requires=Requirements(tools=("c++",)))
    tiny.offer(tiny.release("1.0"), cuda, built)
    card = {"PACELINE_OVERRIDE_GPUS": "nvidia:RTX 4090:8.9:24GiB", "PACELINE_OVERRIDE_TOOLS": ""}
    old = replace(patient, environ=card | {"PACELINE_OVERRIDE_NVIDIA_DRIVER": "550.54"})

    lines = told(old, "machine", NOTE)
    assert any("would be better: driver 550.54 is older than 580 that CUDA 13 needs" in line for line in lines)
    assert any("needs c++, not found" in line for line in lines)
    assert "tiny-any-cpu@1.0" in told(old, "machine", OK)[0]

    new = replace(patient, environ=card | {"PACELINE_OVERRIDE_NVIDIA_DRIVER": "580.1"})
    (idle, *_) = told(new, "machine", NOTE)
    assert idle == "RTX 4090 is here, and no installed runtime uses it -> paceline runtime get tiny-cuda13@2.0"
    tiny.offer(built)
    other = replace(patient, environ=card, plugins=Plugins((), {"tiny": tiny.engine}))
    assert "can run no release that is known" in told(other, "machine", PROBLEM)[0]


def test_an_index_that_answers_is_silent_or_is_not_asked(patient, tiny, file_server, tmp_path):
    quiet = {"PATH": os.environ["PATH"], "UV_DEFAULT_INDEX": f"http://127.0.0.1:{_free_port()}/simple"}
    assert "the package index does not answer: " in told(replace(patient, environ=quiet), "index", PROBLEM)[0]
    offline = replace(patient, environ=quiet | {"PACELINE_OFFLINE": "1"})
    assert "was not asked" in told(offline, "index", NOTE)[0]
    file = f"{ASKED_FOR}-1.0.0-py3-none-any.whl"
    tiny.write_wheel(tmp_path / file, ASKED_FOR, {"a.py": ""})
    file_server.add_file(file, (tmp_path / file).read_bytes())
    file_server.publish(ASKED_FOR, {file: "2026-01-01"})
    answering = replace(patient, environ={"PATH": os.environ["PATH"], "UV_DEFAULT_INDEX": file_server.index})
    assert told(answering, "index", PROBLEM) == []
    assert told(answering, "index", OK)


def test_a_taken_port_and_who_took_it(patient):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        (line,) = told(replace(patient, address=listener.getsockname()), "port", NOTE)
    assert f"is taken by process {os.getpid()}" in line


def test_the_command(tiny, store_world):
    healthy = tiny.paceline("--offline", "doctor", "--json", PACELINE_OVERRIDE_GPUS="")
    assert healthy.returncode == 0, healthy.stdout
    assert json.loads(healthy.stdout)["problems"] == 0

    (tiny.home / "staging" / "left").mkdir(parents=True)
    (tiny.home / "runtimes" / "half@1.0").mkdir(parents=True)
    sick = tiny.paceline("--offline", "doctor", "--fix")
    assert sick.returncode == 1
    assert "deleted 1 things" in sick.stdout
    assert "problem: half@1.0 is incomplete" in sick.stdout
    assert not (tiny.home / "staging" / "left").exists()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
