"""What an installation fetches, from a package index on this machine that a test can make misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from dataclasses import replace

import pytest
from uv import find_uv_bin

from paceline import processor
from paceline.errors import ArchiveError, BuildError, DownloadError, InstallError
from paceline.manager.installation import install, repair
from paceline.packages import cache, gathering, indexes
from paceline.packages.depot import Depot, PackageFile
from paceline.packages.download import Patience, download
from paceline.progress import Phase, silent
from paceline.store import Store, health
from paceline.types import Package, Recipe

WHEEL, BUILDER, SDIST = "tinydep-1.0.0-py3-none-any.whl", "tinybuild-1.0.0-py3-none-any.whl", "tinyengine-1.0.0.tar.gz"


@pytest.fixture
def index(tiny, file_server, monkeypatch):
    """An index with the packages of the tiny engine, and no other place to take them from."""
    for file in tiny.index.iterdir():
        file_server.add_file(file.name, file.read_bytes())
        file_server.publish(file.name.partition("-")[0], {file.name: "2030-01-01"})
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", file_server.index)
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    file_server.faulty = "/files/"
    quick = Patience(stall_s=5, attempts=2, backoff_s=0.01)
    monkeypatch.setattr(indexes, "download", lambda *a, **k: download(*a, **k, patience=quick))
    return file_server


@pytest.fixture
def store(tiny):
    return Store(tiny.home)


@pytest.fixture
def put(tiny, store):
    """Installs the tiny engine; `phases` are those it went through, `bytes` the last count of a download."""

    def run(release=None, **options):
        run.phases, run.bytes = set(), None

        def progress(phase, done=0, total=None, message=""):
            run.phases.add(phase)
            if phase is Phase.DOWNLOAD:
                run.bytes = done, total

        return install(release or tiny.release(), store, tiny.engine, progress, **options)

    return run


def fetched(server):
    return sorted(path.removeprefix("/files/") for path in server.asked if path.startswith("/files/"))


def settings_of(runtime):
    """What the engine of a runtime was compiled with."""
    (file,) = runtime.directory.rglob("tinyengine/settings.json")
    return json.loads(file.read_text())


def with_index(tiny):
    """The environment of a child that may ask the index of this test, as this process does."""
    inherited = {"PIP_NO_INDEX", "UV_FIND_LINKS"}
    return {name: value for name, value in type(tiny).environment(tiny).items() if name not in inherited}


def test_everything_is_fetched_once_and_counted(tiny, index, put, store):
    runtime = put()

    total = sum(len(index.files[f"/files/{name}"][0]) for name in (WHEEL, BUILDER, SDIST))
    assert put.bytes == (total, total)
    assert Phase.BUILD in put.phases
    assert store.manifest(runtime)["build_s"] > 0
    assert fetched(index) == sorted([WHEEL, BUILDER, SDIST])
    assert [file.name for file in tiny.cache.glob("packages/files/*/tiny*")] == [BUILDER]

    store.remove(runtime, force=True)
    index.asked.clear()
    index.close()
    again = put()
    assert {Phase.DOWNLOAD, Phase.BUILD}.isdisjoint(put.phases)
    assert store.manifest(again)["build_s"] is None


def test_what_uv_built_from_the_index_itself_is_not_built_again(tiny, index, put, store, monkeypatch):
    """As Paceline did before it fetched files itself, and as it does where an index can only be read by uv."""
    runtime = put(supply=_Nothing())
    assert Phase.BUILD in put.phases
    assert put.bytes is None

    store.remove(runtime, force=True)
    subprocess.run([find_uv_bin(), "cache", "clean", "tinydep", "--cache-dir", tiny.cache / "uv"], check=True)
    index.asked.clear()
    put()
    assert fetched(index) == [WHEEL]
    assert Phase.BUILD not in put.phases


def test_every_build_has_what_it_takes(tiny, index, put, store):
    """uv plans each build anew, from the files of the packages that build, whatever it has unpacked of them."""
    for number, expected in enumerate(([WHEEL, BUILDER, SDIST], [SDIST], [SDIST])):
        index.asked.clear()
        runtime = put(tiny.release(f"{number}.0", mark=str(number)))
        assert Phase.BUILD in put.phases
        assert sorted(expected) == fetched(index)
        assert settings_of(runtime) == {"mark": str(number)}

    assert {part.name: part.freed_bytes for part in cache.clear(tiny.cache)}["fetched packages"] > 0
    assert not (tiny.cache / "packages" / "files").exists()
    index.asked.clear()
    assert settings_of(put(tiny.release("3.0", mark="3"))) == {"mark": "3"}
    assert sorted([BUILDER, SDIST]) == fetched(index)  # and not the wheel: its line stays, so that uv finds its own


def test_what_uv_lost_is_forgotten_and_fetched_again(tiny, index, put):
    put()
    depot = Depot(tiny.cache)
    assert len(list(depot.folder.glob("simple/*/index.html"))) == 3
    shutil.rmtree(tiny.cache / "uv")

    cache.clear(tiny.cache)

    assert depot.index is None
    index.asked.clear()
    put(tiny.release("2.0"))
    assert fetched(index) == sorted([BUILDER, SDIST, WHEEL])


def test_an_update_is_compiled_after_what_it_updates_was(tiny, index):
    tiny.environment = lambda: with_index(tiny)
    tiny.offer(tiny.release("1.0", mark="1"))
    got = tiny.paceline("runtime", "get", "tiny")
    assert got.returncode == 0, got.stderr
    tiny.offer(tiny.release("1.0", mark="1"), tiny.release("2.0", mark="2"))
    updated = tiny.paceline("runtime", "update", "--registry-only", "--json")
    assert updated.returncode == 0, updated.stderr
    assert settings_of(Store(tiny.home).selected("tiny")) == {"mark": "2"}


def test_a_repair_compiles_again(tiny, index, put, store, monkeypatch):
    here = {"fpu", "avx2", "avx512f"}
    monkeypatch.setattr(processor, "features", lambda: frozenset(here))
    runtime = put(tiny.release(native="yes"))
    here.remove("avx512f")
    assert not health.quick(runtime.directory).ok
    assert repair(runtime.id, store, tiny.engine) == runtime
    assert health.full(runtime.directory).ok


_ONE_OF_SEVERAL = """
import sys
from pathlib import Path
from paceline import paths, plugins
from paceline.manager.installation import install
from paceline.registry import load_registry
from paceline.store import Store

loaded = plugins.load()
(release,) = load_registry(loaded).match(f"tiny@{sys.argv[1]}")
install(release, Store(Path(sys.argv[2])), loaded.engine("tiny"))
"""


def test_several_processes_that_build_at_once(tiny, index):
    """Different builds into different homes, with one cache: no install lock keeps them apart."""
    tiny.environment = lambda: with_index(tiny)
    tiny.offer(*(tiny.release(f"{n}.0", mark=str(n % 2)) for n in range(4)))
    homes = [tiny.folder / f"home-{n}" for n in range(4)]
    variables = {**os.environ, **tiny.environment()}
    argv = [sys.executable, "-c", _ONE_OF_SEVERAL]
    children = [
        subprocess.Popen([*argv, f"{n}.0", home], env=variables, stderr=subprocess.PIPE, text=True)
        for n, home in enumerate(homes)
    ]
    told = [child.communicate(timeout=120)[1] for child in children]

    assert [child.returncode for child in children] == [0] * 4, told
    for n, home in enumerate(homes):
        (runtime,) = Store(home).runtimes()
        assert health.full(runtime.directory).ok
        assert settings_of(runtime) == {"mark": str(n % 2)}
    assert fetched(index).count(WHEEL) == fetched(index).count(BUILDER) == 1


def test_what_broke_off_goes_on(tiny, index, put, store):
    index.misbehave_always(status=503)
    with pytest.raises(DownloadError, match="503"):
        put()
    assert store.runtimes() == ()
    index.misbehave_always(truncate=100)
    with pytest.raises(DownloadError):
        put()
    index.misbehave_always()
    index.headers.clear()
    put()
    assert [h["range"] for h in index.headers if "range" in h]


_KILLED = """
import os, signal, sys
from paceline import paths, plugins
from paceline.manager.installation import install
from paceline.progress import Phase
from paceline.registry import load_registry
from paceline.store import Store

def progress(phase, done=0, total=None, message=""):
    if phase is Phase.DOWNLOAD and done == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

loaded = plugins.load()
install(load_registry(loaded).match("tiny")[0], Store(paths.home()), loaded.engine("tiny"), progress)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_after_a_kill_midway_the_rest_is_fetched(tiny, index, put):
    half = 500_000
    tiny.write_wheel(tiny.index / WHEEL, "tinydep", {"tinydep.py": "#" * 2 * half})
    index.add_file(WHEEL, (tiny.index / WHEEL).read_bytes())
    index.publish("tinydep", {WHEEL: "2030-01-01"})
    tiny.offer(tiny.release())
    index.misbehave_always(stall=half)
    others = sum(len(index.files[f"/files/{name}"][0]) for name in (BUILDER, SDIST))
    environment = {**os.environ, "PYTHONPATH": tiny.environment()["PYTHONPATH"]}
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(half + others)], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    index.misbehave_always()
    index.asked.clear()
    index.headers.clear()

    put()
    (asked,) = (h for path, h in zip(index.asked, index.headers, strict=True) if path == f"/files/{WHEEL}")
    assert half - 2**16 < int(asked["range"].removeprefix("bytes=").removesuffix("-")) <= half


def test_what_is_whole_and_for_another_python_is_not_taken(tmp_path):
    depot, other = Depot(tmp_path), "tinydep-1.0.0-cp27-none-any.whl"
    sha256 = {name: hashlib.sha256(name.encode()).hexdigest() for name in (other, WHEEL)}
    for name, digest in sha256.items():
        path = depot.path(PackageFile(name, digest))
        path.parent.mkdir(parents=True)
        path.write_text(name)
    assert depot.find(Package("tinydep", "1.0.0", (sha256[other],))) is None
    package = Package("tinydep", "1.0.0", tuple(sha256.values()))
    assert depot.find(package) == PackageFile(WHEEL, sha256[WHEEL], len(WHEEL))
    depot.path(depot.find(package)).write_text("damaged")
    assert depot.find(package) is None


def test_after_a_failed_build_nothing_is_fetched_again(tiny, index, put):
    with pytest.raises(BuildError, match="the sky is not blue"):
        put(tiny.release(fail="yes"))
    index.asked.clear()
    put()
    assert fetched(index) == []


def test_who_watches_can_cancel_while_nothing_comes(tiny, index, store):
    index.misbehave_always(stall=10)

    def progress(phase, done=0, total=None, message=""):
        if phase is Phase.DOWNLOAD and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install(tiny.release(), store, tiny.engine, progress)
    assert not list(store.staging.iterdir())


def test_a_changed_file_is_refused(tiny, index, put, store):
    index.misbehave_always(flip=20)
    with pytest.raises(DownloadError, match="sha256"):
        put()
    assert store.runtimes() == ()


def test_a_file_that_is_not_as_large_as_the_release_says(tiny, index, put, store):
    """Though the index agrees with what it serves; nothing of it is taken before that is noticed."""
    release = tiny.release()
    dependency, engine = release.recipe.packages
    wrong = replace(dependency, size=(len(index.files[f"/files/{WHEEL}"][0]) - 1,))
    with pytest.raises(DownloadError, match=rf"{WHEEL} could not be fetched: the server offers \d+ bytes instead of"):
        put(replace(release, recipe=replace(release.recipe, packages=(wrong, engine))))
    assert store.runtimes() == ()
    assert not list(tiny.cache.glob(f"packages/files/*/{WHEEL}*"))


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("../../escaped.py", 0, r"its file '../../escaped.py' has a name that leads elsewhere"),
        ("bomb", 100 * 2**20, r"its \d+ bytes unpack to 1048576\d\d"),
    ],
)
def test_a_hostile_wheel_with_the_right_hash(tiny, index, put, store, tmp_path, name, size, said):
    """Whoever names the hashes could mean no good; uv is not given what no honest package has."""
    with zipfile.ZipFile(tmp_path / WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(name, b"\0" * size)
    index.add_file(WHEEL, (tmp_path / WHEEL).read_bytes())
    index.publish("tinydep", {WHEEL: "2030-01-01"})
    recipe = Recipe((Package("tinydep", "1.0.0", (index.sha256(WHEEL),)),))
    with pytest.raises(ArchiveError, match=said):
        put(replace(tiny.release(), recipe=recipe))
    assert store.runtimes() == ()
    assert not list(tiny.cache.glob(f"packages/files/*/{WHEEL}"))


@pytest.mark.parametrize("given", ["address", "name", "netrc"])
def test_an_index_with_a_password(tiny, index, put, monkeypatch, tmp_path, given):
    index.credentials = ("Basic " + base64.b64encode(b"ada:s3 cret").decode(),)
    host = index.index.removeprefix("http://")
    if given == "address":
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://ada:s3%20cret@{host}")
    elif given == "name":
        monkeypatch.delenv("UV_DEFAULT_INDEX")
        monkeypatch.setenv("UV_INDEX", f"our-own=http://{host}")
        monkeypatch.setenv("UV_INDEX_OUR_OWN_USERNAME", "ada")
        monkeypatch.setenv("UV_INDEX_OUR_OWN_PASSWORD", "s3 cret")
    else:
        (tmp_path / "netrc").write_text('machine 127.0.0.1 login ada password "s3 cret"\n')
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    put()
    assert put.bytes is not None


def test_a_full_disk_is_said_before_anything_is_fetched(index, put, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(gathering.shutil, "disk_usage", lambda path: usage(1000, 900, 100))
    with pytest.raises(InstallError, match=r"the packages need \d+ MB in .*packages, where 0 MB are free"):
        put()
    assert fetched(index) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_a_cache_that_somebody_works_on_is_waited_for(tiny, index, put, store, monkeypatch):
    """As `uv cache clean` does: it holds the lock alone."""
    import fcntl

    store.remove(put(), force=True)
    said = []

    def progress(phase, done=0, total=None, message=""):
        if phase is Phase.WAIT:
            said.append(message)
            if at_once:
                fcntl.flock(cache, fcntl.LOCK_UN)

    cache = os.open(tiny.cache / "uv" / ".lock", os.O_RDWR)
    try:
        at_once = False
        monkeypatch.setenv("UV_LOCK_TIMEOUT", "1")
        fcntl.flock(cache, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match=r"cache holds cannot be seen: cause: Timeout \(1s\) when") as caught:
            install(tiny.release(), store, tiny.engine, progress)
        assert "another process works on uv's cache, such as `uv cache clean`: try again" in caught.value.help

        at_once = True
        monkeypatch.setenv("UV_LOCK_TIMEOUT", "60")
        install(tiny.release(), store, tiny.engine, progress)
        assert said == ["another process works on uv's cache, waiting for it"] * 2
    finally:
        os.close(cache)


def test_offline_what_is_here_is_enough(tiny, index, put, store, monkeypatch):
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    with pytest.raises(BuildError):
        put()
    monkeypatch.delenv("PACELINE_OFFLINE")
    store.remove(put(), force=True)
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    index.asked.clear()
    put()
    assert index.asked == []


class _Nothing:
    """Knows of no file: uv has to find them."""

    def files(self, packages):
        return {}

    def unhashed(self, packages):
        return {}


class TestTheCrew:
    """`gather` with a supply of this test's own."""

    class Supply:
        def __init__(self, count, fail=()):
            self.listed = {
                f"p{n}": [PackageFile(f"p{n}-1.0-py3-none-any.whl", f"{n:064x}", 10, "x")] for n in range(count)
            }
            self.fail, self.brought = fail, []

        def files(self, packages):
            return {p.name: self.listed[p.name] for p in packages if p.name in self.listed}

        def bring(self, file, target, progress):
            progress(5, 10)
            if file.project in self.fail:
                raise DownloadError(f"{file.name} is gone", status=self.fail[file.project])
            progress(10, 10)
            self.brought.append(file.project)

    @staticmethod
    def packages(count):
        return [Package(f"p{n}", "1.0", (f"{n:064x}",)) for n in range(count)]

    def test_brings_all(self, tmp_path):
        supply = self.Supply(9)
        files = gathering.gather(self.packages(9), Depot(tmp_path), supply, silent)
        assert sorted(supply.brought) == sorted(f.project for f in files) == [f"p{n}" for n in range(9)]
        assert len(list(tmp_path.glob("packages/simple/*/index.html"))) == 9

    def test_asks_for_two_versions_of_one_package_one_after_the_other(self, tmp_path):
        supply, asked = self.Supply(2), []
        supply.files = lambda packages: asked.append([p.name for p in packages]) or supply.listed
        gathering.gather([*self.packages(2), *self.packages(1)], Depot(tmp_path), supply, silent)
        assert sorted(map(sorted, asked)) == [["p0"], ["p0", "p1"]]

    def test_ends_with_the_first_error(self, tmp_path):
        with pytest.raises(DownloadError, match="p3"):
            gathering.gather(self.packages(9), Depot(tmp_path), self.Supply(9, {"p3": 404}), silent)

    def test_leaves_what_is_forbidden_to_uv(self, tmp_path):
        assert gathering.gather(self.packages(9), Depot(tmp_path), self.Supply(9, {"p3": 401}), silent) is None

    def test_leaves_what_is_not_all_there_to_uv(self, tmp_path):
        assert gathering.gather(self.packages(9), Depot(tmp_path), self.Supply(8), silent) is None


def test_pages_of_the_depot(tmp_path):
    depot = Depot(tmp_path)
    files = [PackageFile(f"a_b-{n}.0+x.y-py3-none-any.whl", f"{n:064x}") for n in (1, 2)]
    assert depot.index is None
    threads = [threading.Thread(target=depot.add, args=([file],)) for file in files * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "packages" / "simple" / "a-b" / "index.html").read_text().splitlines()
    expected = '<a href="../../files/{0}/a_b-{1}.0%2Bx.y-py3-none-any.whl#sha256={0}">{2}</a><br>'
    assert sorted(lines) == sorted(expected.format(f.sha256, n, f.name) for n, f in enumerate(files, 1))
    with pytest.raises(ValueError, match="nonsense"):
        depot.add([PackageFile("nonsense", "0" * 64)])
