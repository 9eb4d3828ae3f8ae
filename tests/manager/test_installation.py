"""Installing a real package with the real uv into a real environment; only the engine is small."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from paceline import processor
from paceline.errors import BuildError, InstallError, InUseError, SmokeTestError, StoreError
from paceline.manager.installation import install, recorded, repair
from paceline.packages.environment import lock_text
from paceline.packages.uv import uv_environment
from paceline.progress import Phase, silent
from paceline.store import Store, health
from paceline.types import GpuRequirement, Package, Requirements

_INSTALLER = """
import os, signal, sys
from paceline import plugins, paths
from paceline.manager.installation import install
from paceline.registry import load_registry
from paceline.store import Store

def progress(phase, done=0, total=None, message=""):
    print(phase, flush=True)
    if phase == sys.argv[1] and (done or phase != "build"):
        os.kill(os.getpid(), signal.SIGKILL)

loaded = plugins.load()
release = load_registry(loaded).match("tiny")[0]
install(release, Store(paths.home()), loaded.engine("tiny"), progress)
"""


class Recorder:
    """Remembers the progress; raises `error` at `phase`, of a build when its first step is under way."""

    def __init__(self, phase: Phase | None = None, error: BaseException | None = None) -> None:
        self.steps: list[tuple[Phase, int, int | None]] = []
        self._phase, self._error = phase, error

    def __call__(self, phase, done=0, total=None, message=""):
        self.steps.append((phase, done, total))
        if phase is self._phase and (done or phase is not Phase.BUILD):
            raise self._error

    @property
    def phases(self) -> list[Phase]:
        return [p for i, (p, *_) in enumerate(self.steps) if i == 0 or self.steps[i - 1][0] is not p]


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


def processes_below(folder: Path) -> list[str]:
    """Command lines of the processes that mention `folder`, this one excluded."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(folder) in line and process.pid != os.getpid():
            found.append(line)
    return found


def gone_within(seconds: float, folder: Path) -> bool:
    end = time.monotonic() + seconds
    while processes_below(folder):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def empty(index: Path) -> None:
    """Leave nothing to download."""
    for file in index.iterdir():
        file.unlink()


def assert_nothing_is_left(store: Store) -> None:
    assert store.runtimes() == ()
    assert not store.folder.exists() or list(store.folder.iterdir()) == []
    assert not store.staging.exists() or list(store.staging.iterdir()) == []


def test_a_runtime_is_whole(tiny, store):
    progress = Recorder()
    runtime = install(tiny.release(), store, tiny.engine, progress)

    assert runtime == store.get("tiny") == store.selected("tiny")
    assert progress.phases[0] is Phase.ENVIRONMENT
    assert progress.phases[-3:] == [Phase.CHECK, Phase.PUBLISH, Phase.DONE]
    assert (Phase.BUILD, 2, 3) in progress.steps
    assert (Phase.PACKAGES, 2, 2) in progress.steps
    files = json.loads((runtime.directory / "files.json").read_text())
    on_disk = {p.relative_to(runtime.directory).as_posix() for p in runtime.directory.rglob("*") if not p.is_dir()}
    on_disk |= {n for n, entry in files.items() if "link" in entry}
    assert set(files) == on_disk - {"files.json", "manifest.json"}
    for name, entry in files.items():
        path = runtime.directory / name
        if "link" in entry:
            assert str(path.readlink()) == entry["link"]
        else:
            assert path.stat().st_size == entry["size"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]
    manifest = store.manifest(runtime)
    assert manifest["files_sha256"] == hashlib.sha256((runtime.directory / "files.json").read_bytes()).hexdigest()
    assert manifest["smoke_test"]["devices"][0]["name"] == "CPU"
    assert [p["name"] for p in manifest["lock"]] == ["tinydep", "tinyengine"]
    assert "--hash=sha256:" in (runtime.directory / "requirements.txt").read_text()
    assert "[2/3] cc second.c" in (runtime.directory / "build.log").read_text()


def test_a_runtime_works_where_it_ends_up_and_sees_nothing_of_the_host(tiny, store):
    runtime = install(tiny.release(mark="here"), store, tiny.engine)

    code = "import tinydep, tinyengine, sys, json; print(json.dumps([tinyengine.__path__[0], sys.path]))"
    done = subprocess.run([runtime.python, "-I", "-c", code], capture_output=True, text=True, check=True)
    package, path = json.loads(done.stdout)
    assert Path(package).is_relative_to(runtime.directory)
    assert not any("site-packages" in p and str(runtime.directory) not in p for p in path)
    assert json.loads(Path(package, "settings.json").read_text()) == {"mark": "here"}


def test_what_packages_leave_behind_is_pruned(tiny, store):
    runtime = install(tiny.release(), store, tiny.engine)

    assert list(runtime.directory.rglob("tinyengine/__main__.py"))
    assert not list(runtime.directory.rglob("left-behind.txt"))


def test_installing_again_changes_nothing(tiny, store):
    runtime = install(tiny.release(), store, tiny.engine)
    before = {p: p.lstat().st_mtime_ns for p in runtime.directory.rglob("*")}
    progress = Recorder()

    assert install(tiny.release(), store, tiny.engine, progress) == runtime
    assert progress.phases == [Phase.DONE]
    assert {p: p.lstat().st_mtime_ns for p in runtime.directory.rglob("*")} == before


def test_what_serves_a_format_is_not_changed_by_an_installation(tiny, store):
    first = install(tiny.release("1.0"), store, tiny.engine)
    second = install(tiny.release("2.0"), store, tiny.engine)

    assert store.selected("tiny") == first
    assert store.runtimes() == (second, first)


@pytest.fixture
def web(tiny, monkeypatch):
    """A server whose index holds the tiny packages, and no other place to take them from."""
    handler = partial(_Quiet, directory=tiny.web_index())
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("UV_FIND_LINKS")
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{server.server_port}/")
        yield server
        server.shutdown()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def test_a_release_for_gpus_whose_engine_sees_none_is_not_installed(tiny, store):
    needs_gpu = replace(tiny.release(), requires=Requirements(gpu=GpuRequirement("nvidia", min_driver="525")))
    with pytest.raises(SmokeTestError, match=r"needs a GPU \(nvidia\).* it lists CPU \(cpu\)"):
        install(needs_gpu, store, tiny.engine)
    assert store.runtimes() == ()


def test_what_gpu_a_runtime_needs_is_recorded_for_its_repair(tiny, store):
    runtime = install(tiny.release(), store, tiny.engine)
    assert store.manifest(runtime)["needs_gpu"] is None
    asks = replace(tiny.release(), requires=Requirements(gpu=GpuRequirement("nvidia")))
    assert recorded(runtime.directory, asks).requires.gpu is None

    manifest = runtime.directory / "manifest.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(data | {"needs_gpu": {"make": "nvidia", "min_driver": "525"}}))
    assert recorded(runtime.directory, None).requires.gpu == GpuRequirement("nvidia", min_driver="525")

    del data["needs_gpu"]
    manifest.write_text(json.dumps(data))
    assert recorded(runtime.directory, asks).requires.gpu == GpuRequirement("nvidia")
    assert recorded(runtime.directory, None).requires.gpu is None


def test_a_damaged_runtime_is_repaired_from_the_cache(tiny, store, web):
    runtime = install(tiny.release(mark="kept"), store, tiny.engine)
    before = json.loads((runtime.directory / "files.json").read_text())
    (worker,) = runtime.directory.rglob("tinyengine/__main__.py")
    worker.unlink()
    web.shutdown()
    web.server_close()

    assert repair(runtime.id, store, tiny.engine) == runtime

    assert health.full(runtime.directory).ok
    assert json.loads(next(runtime.directory.rglob("tinyengine/settings.json")).read_text()) == {"mark": "kept"}
    after = json.loads((runtime.directory / "files.json").read_text())
    assert all(name.endswith("/uv_cache.json") for name in before.keys() ^ after.keys())  # uv's notes of local files
    assert not list(runtime.directory.rglob("left-behind.txt"))
    assert list(store.staging.iterdir()) == []
    progress = Recorder()
    assert repair(runtime.id, store, tiny.engine, progress) == runtime
    assert progress.phases == [Phase.CHECK]


def test_damage_that_reached_the_cache_is_fetched_anew(tiny, store):
    """uv links its cache's files into the environment: who writes into one writes into the other."""
    runtime = install(tiny.release(), store, tiny.engine)
    (dependency,) = runtime.directory.rglob("tinydep.py")
    dependency.write_text("raise SystemExit('damaged')")

    assert repair(runtime.id, store, tiny.engine) == runtime
    assert (runtime.directory / dependency).read_text() == "NAME = 1\n"

    dependency.write_text("raise SystemExit('damaged')")
    second = install(tiny.release("2.0"), store, tiny.engine)
    assert next(second.directory.rglob("tinydep.py")).read_text() == "NAME = 1\n"
    third = tiny.release("3.0")
    empty(tiny.index)
    (dependency,) = second.directory.rglob("tinydep.py")
    dependency.write_text("raise SystemExit('damaged')")
    with pytest.raises(BuildError, match="tinydep"):  # nowhere to fetch it from
        install(third, store, tiny.engine)


def test_what_cannot_be_repaired_is_said_and_left(tiny, store):
    runtime = install(tiny.release(), store, tiny.engine)
    (worker,) = runtime.directory.rglob("tinyengine/__main__.py")
    worker.unlink()
    empty(tiny.index)
    shutil.rmtree(tiny.cache)

    with pytest.raises(InstallError, match=f"{runtime.id} could not be repaired and is left as it was: uv pip failed"):
        repair(runtime.id, store, tiny.engine)

    assert store.selected("tiny") == runtime
    assert not health.full(runtime.directory).ok
    (runtime.directory / "manifest.json").unlink()
    with pytest.raises(InstallError, match="its manifest is unreadable and no release of that name is known"):
        repair(runtime.id, store, tiny.engine)


def test_a_runtime_without_its_manifest_is_repaired_by_its_release(tiny, store):
    runtime = install(tiny.release(), store, tiny.engine)
    (runtime.directory / "manifest.json").unlink()

    assert repair(runtime.id, store, tiny.engine, release=tiny.release()) == runtime
    assert store.selected("tiny") == runtime


@pytest.mark.parametrize("damaged", ["bin/python", "tinyengine/__main__.py"])
def test_installing_what_is_broken_mends_it(tiny, store, damaged):
    runtime = install(tiny.release(), store, tiny.engine)
    next(path for path in runtime.directory.rglob(damaged.rpartition("/")[2]) if path.match(damaged)).unlink()

    assert install(tiny.release(), store, tiny.engine) == runtime
    assert health.full(runtime.directory).ok


def test_what_is_broken_and_in_use_is_not_made_anew(tiny, store):
    runtime = install(tiny.release(), store, tiny.engine)
    use = store.use(runtime)
    runtime.python.unlink()
    progress = Recorder()

    with pytest.raises(InUseError, match=f"{runtime.id} is in use by process {os.getpid()}"):
        install(tiny.release(), store, tiny.engine, progress)

    assert progress.phases == []
    use.release()
    assert install(tiny.release(), store, tiny.engine) == runtime


def test_what_was_built_for_a_better_processor_is_said_and_built_again(tiny, store, monkeypatch):
    here = {"fpu", "avx2", "avx512f"}
    monkeypatch.setattr(processor, "features", lambda: frozenset(here))
    runtime = install(tiny.release(native="yes"), store, tiny.engine)
    assert store.manifest(runtime)["needs_cpu"] == ["avx2", "avx512f"]
    assert health.glance(runtime.directory).ok

    here.remove("avx512f")  # home and cache move to another machine
    assert health.quick(runtime.directory).problems == (
        "it was built for a processor with avx512f, which this one lacks",
    )
    with pytest.raises(StoreError, match="is broken: it was built for a processor with avx512f"):
        store.select(runtime)
    progress = Recorder()
    assert repair(runtime.id, store, tiny.engine, progress) == runtime
    assert Phase.BUILD in progress.phases
    assert health.full(runtime.directory).ok
    assert store.manifest(runtime)["needs_cpu"] == ["avx2"]

    here.add("avx512f")  # and back: what was built for less runs here
    assert health.glance(runtime.directory).ok
    again = Recorder()
    second = install(tiny.release("2.0", native="yes"), store, tiny.engine, again)
    assert Phase.BUILD not in again.phases
    assert store.manifest(second)["needs_cpu"] == ["avx2"]


def test_what_is_not_compiled_needs_no_processor(tiny, store):
    release = replace(tiny.release(), requires=Requirements(cpu_features=("avx2",)))
    assert store.manifest(install(tiny.release(), store, tiny.engine))["needs_cpu"] == []
    assert store.manifest(install(replace(release, version="2.0"), store, tiny.engine))["needs_cpu"] == ["avx2"]


@pytest.mark.parametrize("phase", ["environment", "packages", "build", "check", "publish", "done"])
def test_a_kill_leaves_a_whole_runtime_or_none(tiny, store, phase):
    tiny.offer(tiny.release(linger="yes") if phase == "build" else tiny.release())

    killed = tiny.python("-c", _INSTALLER, phase)

    assert killed.returncode == -9, killed.stderr
    assert phase in killed.stdout.split()
    assert gone_within(5, tiny.folder), f"still running: {processes_below(tiny.folder)}"
    assert [r.id for r in store.runtimes()] == (["tiny-any-cpu@1.0.0"] if phase == "done" else [])
    # The next one heals, without being asked to.
    runtime = install(tiny.release(), store, tiny.engine)
    assert store.runtimes() == (runtime,)
    assert store.selected("tiny") == runtime
    assert list(store.staging.iterdir()) == []


def test_an_interrupt_ends_the_build_and_removes_what_it_made(tiny, store):
    with pytest.raises(KeyboardInterrupt):
        install(tiny.release(linger="yes"), store, tiny.engine, Recorder(Phase.BUILD, KeyboardInterrupt()))

    assert processes_below(tiny.folder) == []
    assert_nothing_is_left(store)


@pytest.mark.parametrize("which", ["dependency", "source", "build requirement"])
def test_a_wrong_hash_is_refused(tiny, store, which):
    release = tiny.release()
    dependency, engine = release.recipe.packages
    (builder,) = release.recipe.build_packages
    wrong = {"sha256": ("0" * 64,)}
    if which == "build requirement":
        recipe = replace(release.recipe, build_packages=(replace(builder, **wrong),))
    elif which == "source":
        recipe = replace(release.recipe, packages=(dependency, replace(engine, **wrong)))
    else:
        recipe = replace(release.recipe, packages=(replace(dependency, **wrong), engine))

    with pytest.raises(BuildError, match=r"(?i)hash") as caught:
        install(replace(release, recipe=recipe), store, tiny.engine)

    assert "the whole log is" in caught.value.help
    assert_nothing_is_left(store)


def test_a_failing_build_is_quoted_and_its_log_kept(tiny, store):
    with pytest.raises(BuildError, match=r"second\.c:7: error: the sky is not blue") as caught:
        install(tiny.release(fail="yes"), store, tiny.engine)

    (log,) = store.logs.iterdir()
    assert str(log) in caught.value.help
    assert "[2/3] cc second.c" in log.read_text()
    assert_nothing_is_left(store)


def test_an_engine_that_does_not_start_is_not_installed(tiny, store):
    with pytest.raises(SmokeTestError) as caught:
        install(tiny.release(crash="yes"), store, tiny.engine)

    assert "the engine has no wheels" in f"{caught.value.message} {caught.value.help}"
    assert len(list(store.logs.iterdir())) == 1
    assert_nothing_is_left(store)


def test_a_home_that_cannot_be_written_is_said(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StoreError, match="file") as caught:
        install(tiny.release(), Store(tmp_path / "file" / "home"), tiny.engine)

    assert "PACELINE_HOME" in caught.value.help


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_runtimes_that_lie_on_another_disk_are_said_before_anything_is_made(tiny, store):
    other, progress = Path("/dev/shm") / f"runtimes-{os.getpid()}", Recorder()
    store.home.mkdir(parents=True)
    if other.parent.stat().st_dev == store.home.stat().st_dev:
        pytest.skip("no second file system")
    other.mkdir()
    try:
        store.folder.symlink_to(other)
        with pytest.raises(StoreError) as refused:
            install(tiny.release(), store, tiny.engine, progress)
        assert f"made in {store.staging} and appear by one rename in {store.folder} ({other})" in refused.value.message
        assert "PACELINE_HOME" in refused.value.help
        assert progress.phases == []
        assert [*other.iterdir()] == [*store.staging.iterdir()] == []
    finally:
        other.rmdir()


def test_two_installers_make_one_runtime(tiny, store):
    tiny.offer(tiny.release())
    done: list[subprocess.CompletedProcess[str]] = []
    threads = [threading.Thread(target=lambda: done.append(tiny.python("-c", _INSTALLER, "none"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [d.returncode for d in done] == [0, 0], [d.stderr for d in done]
    assert sorted("environment" in d.stdout.split() for d in done) == [False, True]
    (runtime,) = store.runtimes()
    assert store.selected("tiny") == runtime
    assert list(store.staging.iterdir()) == []


def test_what_has_no_hash_is_never_installed_silently(tiny, store, monkeypatch):
    release = tiny.release()
    package = Package("tinyengine", "1.0.0", index=tiny.simple_index())
    unpinned = replace(release, recipe=replace(release.recipe, packages=(release.recipe.packages[0], package)))
    monkeypatch.delenv("PIP_NO_INDEX")

    with pytest.raises(InstallError, match="no hashes are published") as caught:
        install(unpinned, store, tiny.engine)
    assert "--allow-unpinned" in caught.value.help
    assert_nothing_is_left(store)

    runtime = install(unpinned, store, tiny.engine, silent, allow_unpinned=True)
    assert store.manifest(runtime)["unpinned"] == ["tinyengine"]
    # The hashes that are there still count.
    other = replace(release.recipe.packages[0], sha256=("0" * 64,))
    mixed = replace(unpinned, version="2", recipe=replace(unpinned.recipe, packages=(other, package)))
    with pytest.raises(BuildError, match=r"(?i)hash"):
        install(mixed, store, tiny.engine, allow_unpinned=True)


def test_a_runtime_without_packages_is_only_an_environment(tiny, store):
    release = tiny.release()
    bare = replace(release, recipe=replace(release.recipe, packages=(), build_packages=(), config_settings={}))

    with pytest.raises(SmokeTestError):  # its worker has no module to run
        install(bare, store, tiny.engine)
    (log,) = store.logs.iterdir()
    assert "pip install" not in log.read_text()


def test_a_lock_is_a_requirements_file():
    packages = [Package("a", "1", ("00", "11")), Package("b", "2", ("22",), marker="python_version < '3.12'")]

    assert lock_text(packages) == (
        "a==1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n"
        "b==2 ; python_version < '3.12' \\\n    --hash=sha256:22\n"
    )


def test_what_uv_sees_of_the_environment():
    environ = {
        "PATH": "/bin",
        "https_proxy": "http://proxy",
        "SSL_CERT_FILE": "/ca.pem",
        "UV_INDEX_PRIVATE_PASSWORD": "secret",
        "CXX": "clang++",
        "PIP_INDEX_URL": "https://packages.example/simple",
    }
    changing = {"PYTHONPATH": "/x", "VIRTUAL_ENV": "/v", "CMAKE_ARGS": "-DX=1", "UV_PYTHON": "3.9"}
    changing |= {"UV_NO_VERIFY_HASHES": "1", "SOURCE_DATE_EPOCH": "0", "UV_CONSTRAINT": "c.txt"}

    kept = uv_environment(environ | changing)

    expected = environ | {"UV_DEFAULT_INDEX": environ["PIP_INDEX_URL"]}
    del expected["PIP_INDEX_URL"]
    assert kept == expected


def test_pips_index_does_not_replace_uvs():
    environ = {"UV_DEFAULT_INDEX": "https://a.example", "PIP_INDEX_URL": "https://b.example"}

    assert uv_environment(environ) == {"UV_DEFAULT_INDEX": "https://a.example"}


def test_several_indexes_are_mixed_only_where_every_file_is_pinned():
    environ = {"PIP_EXTRA_INDEX_URL": "https://a.example"}

    assert uv_environment(environ)["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert "UV_INDEX_STRATEGY" not in uv_environment(environ, pinned=False)
