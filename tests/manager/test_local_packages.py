"""Runtimes with a package of this machine: a wheel, or a folder of source."""

from __future__ import annotations

import hashlib
import json
import platform
import tarfile
import zipfile
from dataclasses import replace

import pytest

from paceline.errors import ArchiveError, IncompatibleError, InstallError, NotFoundError, UsageError
from paceline.manager.installation import install, repair
from paceline.manager.local_packages import from_wheel, is_path, package_at, with_package
from paceline.manager.updates import plan_updates
from paceline.packages.wheels import read_wheel
from paceline.store import Store, health
from paceline.types import Package
from paceline.versions import is_local

NAME = "tinyengine-1.0.0-py3-none-any.whl"
PYTHON = platform.python_version()


@pytest.fixture
def wheel(tiny, tmp_path):
    """A function that writes a wheel of the tiny engine, whose worker does what `settings` say."""

    def make(name=NAME, metadata="", **settings):
        path = tmp_path / "made here" / name
        path.parent.mkdir(exist_ok=True)
        version = name.split("-")[1]
        files = {"tinyengine/__main__.py": tiny.worker, "tinyengine/settings.json": json.dumps(settings)}
        tiny.write_wheel(path, "tinyengine", files, version)
        if metadata:
            info = f"tinyengine-{version}.dist-info/METADATA"
            with zipfile.ZipFile(path) as old:
                content = {entry: old.read(entry) for entry in old.namelist()}
            content[info] += metadata.encode()
            with zipfile.ZipFile(path, "w") as new:
                for entry, data in content.items():
                    new.writestr(entry, data)
        return path

    return make


@pytest.fixture
def source(tiny, tmp_path):
    """The source of the tiny engine."""
    with tarfile.open(tiny.index / "tinyengine-1.0.0.tar.gz") as archive:
        archive.extractall(tmp_path / "source", filter="data")
    return tmp_path / "source" / "tinyengine-1.0.0"


def local(tiny, path, release=None):
    (found,) = from_wheel([release or tiny.release()], read_wheel(path), PYTHON)
    return found


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("./x", True),
        ("x.whl", True),
        ("/a/b", True),
        ("~/b", True),
        ("a/b", True),
        (".", True),
        ("llama.cpp", False),
        ("llama.cpp:cuda@0.3.36", False),
        (":linux", False),
    ],
)
def test_what_is_a_path(text, is_one):
    assert is_path(text) is is_one


class TestTheRelease:
    def test_takes_one_package_from_the_wheel_and_all_else_from_its_recipe(self, tiny, wheel):
        path = wheel()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        made = local(tiny, path, tiny.release("7.1"))
        assert made.version == f"1.0.0+local.{digest[:8]}"
        assert made.id == f"tiny-any-cpu@1.0.0+local.{digest[:8]}"
        assert is_local(made.version)
        assert {p.name: p for p in made.recipe.packages} == {
            **{p.name: p for p in tiny.release().recipe.packages},
            "tinyengine": Package("tinyengine", "1.0.0", (digest,), file=NAME),
        }
        assert made.recipe.build_packages == ()
        assert made.recipe.expected_build_s is None

    def test_a_local_version_of_its_own_stays(self, tiny, wheel):
        made = local(tiny, wheel("tinyengine-1.0.0+cu124-py3-none-any.whl"))
        assert made.version.startswith("1.0.0+cu124.local.")
        assert is_local(made.version)

    @pytest.mark.parametrize("version", ["1.0.0", "1.0.0+cu124", "1.0.0+localized", "b1234"])
    def test_other_versions_are_not_local(self, version):
        assert not is_local(version)

    def test_of_the_wheels_own_version_comes_first(self, tiny, wheel):
        found = from_wheel([tiny.release("2.0"), tiny.release("1.0.0")], read_wheel(wheel()), PYTHON)
        assert [r.notes for r in found] == [f"tinyengine comes from {NAME}."]

    def test_needs_no_compiler_any_more(self, tiny, wheel):
        release = tiny.release()
        release = replace(release, requires=replace(release.requires, tools=("c++",)))
        assert local(tiny, wheel(), release).requires.tools == ()

    @pytest.mark.parametrize("name", ["tinyengine-1.0.0-cp27-cp27m-win32.whl", "tinyengine-1.0.0-py2-none-any.whl"])
    def test_is_none_where_the_wheel_does_not_fit(self, tiny, wheel, name):
        with pytest.raises(IncompatibleError, match="does not fit this machine and Python"):
            local(tiny, wheel(name))

    def test_is_none_for_another_python(self, tiny, wheel):
        with pytest.raises(IncompatibleError, match="does not fit this machine and Python"):
            local(tiny, wheel(metadata="Requires-Python: <3\n"))

    def test_must_bring_what_the_wheel_needs(self, tiny, wheel):
        needs = "Requires-Dist: tinydep>=2\nRequires-Dist: tinydep>=1\nRequires-Dist: other; extra == 'more'\n"
        with pytest.raises(InstallError, match=r"needs tinydep>=2 \(not 1\.0\.0\), which tiny-any-cpu@1\.0\.0 does"):
            local(tiny, wheel(metadata=needs + "Requires-Dist: windows-only; sys_platform == 'cli'\n"))
        with pytest.raises(InstallError, match=r"needs numpy>2, which tiny"):
            local(tiny, wheel(metadata="Requires-Dist: numpy>2\n"))

    def test_of_a_package_that_nothing_is_made_with(self, tiny):
        with pytest.raises(NotFoundError, match="no release of 1 is made with the package other"):
            with_package([tiny.release()], "other", built=False)
        with pytest.raises(IncompatibleError, match="takes tinydep as a wheel and does not say how it is built"):
            with_package([tiny.release()], "tinydep", built=True)


class TestWhatIsRefused:
    def test_hostile_wheels(self, wheel):
        path = wheel()
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("../../escaped", "x")
        with pytest.raises(ArchiveError, match="leads elsewhere"):
            package_at(path)

    def test_other_files(self, wheel, tmp_path):
        other = wheel().rename(tmp_path / "engine.zip")
        with pytest.raises(ArchiveError, match=r"engine\.zip is no wheel"):
            package_at(other)
        with pytest.raises(ArchiveError, match="characters that no wheel's name has"):
            package_at(wheel().rename(tmp_path / "tinyengine-1.0.0-py3-none-any ; x.whl"))
        with pytest.raises(ArchiveError, match="its metadata cannot be read: Invalid specifier: 'some snake'"):
            package_at(wheel(metadata="Requires-Python: some snake\n"))
        renamed = wheel().rename(tmp_path / "tinydep-1.0.0-py3-none-any.whl")
        with pytest.raises(ArchiveError, match=r"its metadata is of tinyengine 1\.0\.0"):
            package_at(renamed)

    def test_other_folders(self, tmp_path):
        with pytest.raises(UsageError, match="has no pyproject"):
            package_at(tmp_path)
        with pytest.raises(UsageError, match="does not exist"):
            package_at(tmp_path / "nowhere")
        for text in ("[tool.x]\n", f"a = {'[' * 5000}", "project = 7\n"):
            (tmp_path / "pyproject.toml").write_text(text)
            with pytest.raises(UsageError, match="names no project"):
                package_at(tmp_path)

    def test_a_wheel_that_changes_between_the_look_and_the_installation(self, tiny, wheel):
        path = wheel()
        release = local(tiny, path)
        wheel(crash="yes")
        with pytest.raises(InstallError, match=r"is not the file that .* is made with"):
            install(release, Store(tiny.home), tiny.engine, cache=tiny.cache, wheel=path)
        assert Store(tiny.home).runtimes() == ()


class TestTheRuntime:
    @pytest.fixture
    def store(self, tiny):
        return Store(tiny.home)

    def test_keeps_the_wheel_and_can_be_repaired_without_it(self, tiny, store, wheel):
        path = wheel("tinyengine-1.0.0+a.b-py3-none-any.whl")
        release = local(tiny, path)
        runtime = install(release, store, tiny.engine, cache=tiny.cache, wheel=path)
        path.unlink()
        assert health.full(runtime.directory).ok
        assert (runtime.directory / "packages" / path.name).is_file()
        (main,) = runtime.directory.glob("env/lib/python*/site-packages/tinyengine/__main__.py")
        main.unlink()

        again = repair(runtime.id, store, tiny.engine, cache=tiny.cache)

        assert again == runtime
        assert health.full(runtime.directory).ok
        assert main.is_file()

    def test_is_not_repaired_with_a_damaged_wheel(self, tiny, store, wheel):
        path = wheel()
        runtime = install(local(tiny, path), store, tiny.engine, cache=tiny.cache, wheel=path)
        (runtime.directory / "packages" / NAME).write_bytes(b"PK")
        with pytest.raises(InstallError, match="is not the file that"):
            repair(runtime.id, store, tiny.engine, cache=tiny.cache)

    def test_is_left_alone_by_updates(self, tiny, store, wheel):
        path = wheel()
        runtime = install(local(tiny, path), store, tiny.engine, cache=tiny.cache, wheel=path)
        updates, (kept,) = plan_updates({"tiny": runtime}, [])
        assert updates == ()
        assert "which only `runtime get PATH` renews" in kept.reason


class TestTheCommand:
    def test_a_wheel(self, tiny, wheel):
        path = wheel()
        plan = json.loads(tiny.paceline("runtime", "get", str(path), "--dry-run", "--json").stdout)
        assert [p["file"] for p in plan["packages"]] == [None, NAME]
        assert not tiny.home.exists()

        got = tiny.paceline("runtime", "get", str(path), "--json")
        assert got.returncode == 0, got.stderr
        told = json.loads(got.stdout)
        assert told["id"] == plan["release"]
        assert told["selected_for"] == ["tiny"]
        again = tiny.paceline("runtime", "get", "tiny", "--from", str(path))
        assert "is already installed" in again.stdout, again.stderr

    def test_a_folder_is_built_as_the_recipe_says(self, tiny, source):
        tiny.offer(tiny.release(flavour="sweet"))
        got = tiny.paceline("runtime", "get", str(source), "--json")
        assert got.returncode == 0, got.stderr
        assert "as tiny-any-cpu@1.0.0 builds it" in got.stderr
        (runtime,) = Store(tiny.home).runtimes()
        assert is_local(runtime.version)
        (settings,) = runtime.directory.glob("env/lib/python*/site-packages/tinyengine/settings.json")
        assert json.loads(settings.read_text()) == {"flavour": "sweet"}
        assert [left.name for left in (tiny.cache / "builds").iterdir()] == ["held.lock"]

    def test_a_folder_that_does_not_build(self, tiny, source):
        tiny.offer(tiny.release(fail="yes"))
        got = tiny.paceline("runtime", "get", str(source))
        assert (got.returncode, "the sky is not blue" in got.stderr) == (1, True)
        assert Store(tiny.home).runtimes() == ()

    def test_an_engine_that_does_not_start(self, tiny, wheel):
        got = tiny.paceline("runtime", "get", str(wheel(crash="yes")))
        assert (got.returncode, "the engine has no wheels" in got.stderr) == (1, True)
        assert Store(tiny.home).runtimes() == ()

    def test_what_fits_nothing_is_3(self, tiny, wheel):
        assert tiny.paceline("runtime", "get", str(wheel("tinyengine-1.0.0-py2-none-any.whl"))).returncode == 3
        assert tiny.paceline("runtime", "get", str(tiny.index / "tinybuild-1.0.0-py3-none-any.whl")).returncode == 3
