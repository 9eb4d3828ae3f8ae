"""Bundles are made from an index on this machine, carried, attacked, and installed where nothing answers."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from paceline.errors import ArchiveError, InstallError, OfflineError, RegistryError, StoreError, UnpinnedError
from paceline.manager.bundles import CONTENTS, create, read_bundle
from paceline.manager.installation import install, start_once
from paceline.packages.depot import Depot
from paceline.packages.index import why_unreachable
from paceline.progress import silent
from paceline.store import Store, health, transaction
from paceline.types import Package, Recipe, Requirements

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
NAMES = ["tinybuild-1.0.0-py3-none-any.whl", "tinydep-1.0.0-py3-none-any.whl", "tinyengine-1.0.0.tar.gz"]


@pytest.fixture
def index(tiny, file_server, monkeypatch):
    for file in tiny.index.iterdir():
        file_server.add_file(file.name, file.read_bytes())
        file_server.publish(file.name.partition("-")[0], {file.name: "2030-01-01"})
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("UV_DEFAULT_INDEX", file_server.index)
    return file_server


@pytest.fixture
def made(tiny, index, tmp_path):
    """A bundle of the tiny engine's release, made with a cache of its own."""
    return create(
        [tiny.release()], tmp_path / "tiny.bundle", [PYTHON], tmp_path / "maker", silent, store=Store(tiny.home)
    )


@pytest.fixture
def broken(made, tmp_path):
    """A function that rewrites the bundle: changed contents, entries left out, added or replaced."""

    def rewrite(change=None, drop=(), add=(), **fields):
        path = tmp_path / "broken.bundle"
        with zipfile.ZipFile(made.path) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                data = old.read(entry)
                if entry.filename == CONTENTS:
                    contents = json.loads(data) | fields
                    if change is not None:
                        change(contents)
                    data = json.dumps(contents).encode()
                if not any(name in entry.filename for name in drop):
                    new.writestr(zipfile.ZipInfo(entry.filename), data)
            for entry, data in add:
                new.writestr(entry, data)
        return path

    return rewrite


def entry(name, mode=0o100644, kind=zipfile.ZIP_STORED):
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr, made.compress_type = 3, mode << 16, kind
    return made


def test_it_holds_everything_and_is_always_the_same(tiny, made, tmp_path):
    assert [f.name for f in made.listed] == NAMES
    assert made.releases == (tiny.release(),)
    assert made.pythons == (PYTHON,)
    made.check()
    again = create(
        [tiny.release()], tmp_path / "again.bundle", [PYTHON], tmp_path / "other", silent, store=Store(tiny.home)
    )
    assert again.path.read_bytes() == made.path.read_bytes()
    assert not list(tmp_path.glob("maker/bundles/packages/files/*/tiny*"))


def test_it_is_installed_where_nothing_answers(tiny, index, made, tmp_path, monkeypatch):
    index.asked.clear()
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    store = Store(tiny.home)

    runtime = install(made.releases[0], store, tiny.engine, supply=made)

    assert store.selected("tiny") == runtime
    assert index.asked == []
    kept = [file.name for file in tiny.cache.glob("packages/files/*/tiny*")]
    assert kept == ["tinybuild-1.0.0-py3-none-any.whl"]  # every build reads it again
    store.remove(runtime, force=True)
    made.path.unlink()
    install(made.releases[0], store, tiny.engine)  # the cache has it now
    assert index.asked == []


def test_a_release_for_other_machines(tiny, index, file_server, tmp_path):
    """Wheels of another platform and of two Pythons, as their tags say; this machine can run none of them."""
    names = [f"far-1.0-cp3{n}-cp3{n}-macosx_14_0_arm64.whl" for n in (12, 13, 14)]
    for name in names:
        tiny.write_wheel(tmp_path / name, "far", {"far.py": f"NAME = {name!r}\n"}, "1.0")
        file_server.add_file(name, (tmp_path / name).read_bytes())
    file_server.publish("far", dict.fromkeys(names, "2030-01-01"))
    file_server.publish("tinydep", {NAMES[1]: "2030-01-01"})
    packages = (
        Package("far", "1.0", tuple(sorted(file_server.sha256(name) for name in names))),
        Package("tinydep", "1.0.0", (file_server.sha256(NAMES[1]),), marker="python_version >= '3.13'"),
    )
    mac = Requirements(os="macos", arch="arm64", min_os_version="14.0")
    release = replace(tiny.release(), platform="mac-arm64", requires=mac, recipe=Recipe(packages))

    def listed(*pythons):
        return [
            f.name
            for f in create(
                [release], tmp_path / "mac.bundle", pythons, tmp_path / "maker", silent, store=Store(tiny.home)
            ).listed
        ]

    assert listed("3.12") == names[:1]
    assert listed("3.12", "3.13") == [*names[:2], NAMES[1]]
    with pytest.raises(InstallError, match="far"):
        listed("3.11")
    other = replace(release, recipe=Recipe((replace(packages[0], sha256=("0" * 64,)),)))
    with pytest.raises(InstallError, match=r"no file of far 1\.0 for Python 3\.12 on mac-arm64"):
        create([other], tmp_path / "other.bundle", ["3.12"], tmp_path / "maker", silent, store=Store(tiny.home))
    assert not (tmp_path / "other.bundle").exists()


def test_what_has_no_hash_is_not_bundled_silently(tiny, index, tmp_path):
    release = replace(tiny.release(), recipe=Recipe((Package("a", "1", index="https://a.example"),)))
    with pytest.raises(UnpinnedError, match=r"takes a 1 from https://a\.example, where no hashes are published"):
        create([release], tmp_path / "b", [PYTHON], tmp_path / "maker", silent, store=Store(tiny.home))


def test_it_holds_what_lies_in_a_folder_that_stands_for_an_index(tiny, made, tmp_path, monkeypatch):
    monkeypatch.setenv("UV_FIND_LINKS", str(tiny.index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    again = tmp_path / "again.bundle"
    done = tiny.paceline("bundle", "create", "tiny", "-o", str(again))
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == made.path.read_bytes()
    (tiny.index / NAMES[1]).write_bytes(b"another one")
    refused = tiny.paceline("bundle", "create", "tiny", "-o", str(again), PACELINE_CACHE=str(tmp_path / "other"))
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


def test_where_it_cannot_be_written_nothing_is_fetched(tiny, index, tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    for target, status, said in (
        (folder, 2, f"error: {folder} is a folder\nhelp: give the file to write, such as {folder}/paceline.bundle"),
        (file / "x.bundle", 1, f"writing the bundle {file}/x.bundle failed at {file}: "),
    ):
        done = tiny.paceline("bundle", "create", "tiny", "-o", str(target))
        assert done.returncode == status, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert index.asked == []


def test_a_disk_that_fills_while_it_is_written_is_said(tiny, index, tmp_path):
    target = tmp_path / "tiny.bundle"

    def full(step, path):
        if (step, path) == ("rename", target):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with transaction.observed(full), pytest.raises(StoreError, match=r"writing the bundle .* failed") as caught:
        create([tiny.release()], target, [PYTHON], tmp_path / "maker", silent, store=Store(tiny.home))
    assert f"make room on the disk of {tmp_path}" in caught.value.help
    assert "write it elsewhere" in caught.value.help
    assert list(tmp_path.glob("*.bundle*")) == []


def test_offline_none_is_made(tiny, index, tmp_path, monkeypatch):
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    with pytest.raises(OfflineError, match="was not made"):
        create([tiny.release()], tmp_path / "tiny.bundle", [PYTHON], tmp_path / "maker", silent, store=Store(tiny.home))


class TestAttacks:
    @pytest.mark.parametrize("end", [0, 10, 1000, -1, -30])
    def test_truncated(self, made, end):
        made.path.write_bytes(made.path.read_bytes()[:end])
        with pytest.raises(ArchiveError, match=r"cannot be used|copy it again"):
            read_bundle(made.path).check()

    def test_any_flipped_byte_is_found_or_changes_nothing(self, tiny, made):
        """Bits that nobody reads (a date, a version) may differ; what is read then is what was written."""
        whole = made.path.read_bytes()
        for place in [*range(0, 120, 7), *range(120, len(whole), 211), *range(len(whole) - 120, len(whole), 7)]:
            data = bytearray(whole)
            data[place] ^= 0x10
            made.path.write_bytes(data)
            try:
                found = read_bundle(made.path)
                found.check()
            except (ArchiveError, RegistryError):
                continue
            assert (found.listed, found.releases) == (made.listed, made.releases)

    @pytest.mark.parametrize("name", ["../escaped", "/escaped", "files/../../escaped", "C:/x", "a\\b", "files/extra"])
    def test_entries_that_nobody_listed(self, broken, name):
        with pytest.raises(ArchiveError, match=r"leads elsewhere|absolute path|other files than"):
            read_bundle(broken(add=[(entry(name), b"x")]))

    @pytest.mark.parametrize("mode", [0o120777, 0o060666, 0o010666, 0o104755])
    def test_links_devices_and_rights(self, broken, mode):
        with pytest.raises(ArchiveError, match="is no ordinary file"):
            read_bundle(broken(add=[(entry("files/extra", mode), b"/etc/passwd")]))

    def test_a_bomb(self, broken):
        with pytest.raises(ArchiveError, match="is compressed"):
            read_bundle(broken(add=[(entry("files/extra", kind=zipfile.ZIP_DEFLATED), b"\0" * 10_000_000)]))

    def test_a_size_that_is_a_lie(self, broken):
        path = broken(add=[(entry("files/extra"), b"12345")])
        data = path.read_bytes()
        start = data.rindex(b"PK\x01\x02")
        path.write_bytes(data[: start + 20] + struct.pack("<II", 1 << 30, 1 << 30) + data[start + 28 :])
        with pytest.raises(ArchiveError, match="lie over one another"):
            read_bundle(path)

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_two_entries_of_one_name(self, broken, made):
        with pytest.raises(ArchiveError, match="two entries of one name"):
            read_bundle(broken(add=[(entry(f"files/{made.listed[0].sha256}/{NAMES[0]}"), b"other")]))

    def test_a_file_that_is_another_one(self, broken, made, tmp_path):
        file = made.listed[1]
        other = b"x" * file.size
        path = broken(drop=[NAMES[1]], add=[(entry(f"files/{file.sha256}/{file.name}"), other)])
        found = read_bundle(path)
        with pytest.raises(ArchiveError, match=f"{NAMES[1]} in it is not what it should be"):
            found.check()
        with pytest.raises(ArchiveError, match=f"{NAMES[1]} in it is not what it should be"):
            found.bring(file, tmp_path / "out" / file.name, lambda *_: None)
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_file_that_is_missing(self, broken):
        with pytest.raises(ArchiveError, match="other files than"):
            read_bundle(broken(drop=[NAMES[1]]))

    @pytest.mark.parametrize("name", ["../../a-1.0.tar.gz", "a-1.0.tar.gz/../b-1.0.tar.gz", "nonsense", "", 7, None])
    def test_names_in_the_contents(self, broken, name):
        def change(contents):
            contents["files"][0]["name"] = name

        with pytest.raises(ArchiveError, match="is wrong"):
            read_bundle(broken(change))

    @pytest.mark.parametrize(
        "fields", [{"format": 2}, {"format": None}, {"files": 7}, {"files": [7]}, {"pythons": 7}, {"registry": {}}]
    )
    def test_contents_that_are_none(self, broken, fields):
        with pytest.raises((ArchiveError, RegistryError)):
            read_bundle(broken(**fields))

    def test_no_contents(self, broken, tmp_path):
        with pytest.raises(ArchiveError, match=f"has no {CONTENTS}"):
            read_bundle(broken(drop=[CONTENTS]))
        (tmp_path / "page").write_text("<html>404</html>")
        with pytest.raises(ArchiveError, match="no bundle, or a damaged one"):
            read_bundle(tmp_path / "page")

    def test_a_hostile_package_with_the_right_hash(self, tiny, index, made, tmp_path):
        """Who makes the bundle's registry also writes its hashes; the packages are looked at all the same."""
        name = "tinydep-1.0.0-py3-none-any.whl"
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr("../../escaped.py", "")
        content = (tmp_path / name).read_bytes()
        index.add_file(name, content)
        index.publish("tinydep", {name: "2030-01-01"})
        package = Package("tinydep", "1.0.0", (hashlib.sha256(content).hexdigest(),))
        release = replace(tiny.release(), recipe=Recipe((package,)))
        with pytest.raises(ArchiveError, match=r"its file '../../escaped.py' has a name that leads elsewhere"):
            create([release], tmp_path / "b", [PYTHON], tmp_path / "maker", silent, store=Store(tiny.home))


class TestTheCommand:
    @pytest.fixture
    def other(self, tiny, tmp_path):
        """Runs `paceline` as on another machine: with a home and a cache of its own."""

        def run(*arguments, **variables):
            place = {
                "PACELINE_HOME": str(tmp_path / "other" / "home"),
                "PACELINE_CACHE": str(tmp_path / "other" / "cache"),
            }
            return tiny.paceline("bundle", *map(str, arguments), **place, **variables)

        return run

    @pytest.fixture
    def web(self, index):
        """What lets `tiny.paceline` ask the index."""
        return {"PIP_NO_INDEX": "0", "UV_FIND_LINKS": "", "UV_DEFAULT_INDEX": index.index, "PIP_FIND_LINKS": ""}

    def test_from_one_machine_to_another(self, tiny, index, web, other, tmp_path):
        file = tmp_path / "carried.bundle"
        done = tiny.paceline("bundle", "create", "tiny", "-o", str(file), "--json", **web)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert [r["id"] for r in said["releases"]] == ["tiny-any-cpu@1.0.0"]

        index.asked.clear()
        listed = other("ls", file, "--json", **web)
        assert json.loads(listed.stdout)["releases"][0]["verdict"]["status"] == "compatible", listed.stderr
        assert NAMES[2] in other("ls", file, **web).stdout
        installed = other("install", file, **web)
        assert installed.stdout == "Installed tiny-any-cpu@1.0.0, selected for TINY\n", installed.stderr
        assert index.asked == []

    @pytest.mark.parametrize("damage", ["a file is gone", "a file has other text, of its length"])
    def test_it_mends_what_it_installed(self, tiny, web, other, tmp_path, damage):
        file, home = tmp_path / "carried.bundle", tmp_path / "other" / "home"
        assert tiny.paceline("bundle", "create", "tiny", "-o", str(file), **web).returncode == 0
        assert other("install", file).returncode == 0
        (runtime,) = Store(home).runtimes()
        (module,) = runtime.directory.glob("env/lib/python*/site-packages/tinyengine/__main__.py")
        before = module.read_bytes()
        module.unlink()  # a link to what the cache has
        if damage != "a file is gone":
            module.write_bytes(before.swapcase())
        shutil.rmtree(tmp_path / "other" / "cache")

        again = other("install", file)

        assert again.returncode == 0, again.stderr
        assert module.read_bytes() == before
        assert health.full(runtime.directory).ok

    @pytest.fixture
    def of_a_wheel(self, tiny, web, tmp_path):
        """The name of a runtime that was made here with a wheel that no index has."""
        wheel = tmp_path / "mine" / "tinyengine-1.0.0-py3-none-any.whl"
        wheel.parent.mkdir()
        files = {"tinyengine/__main__.py": tiny.worker, "tinyengine/settings.json": "{}"}
        tiny.write_wheel(wheel, "tinyengine", files, "1.0.0")
        got = tiny.paceline("runtime", "get", str(wheel), "--json", **web)
        assert got.returncode == 0, got.stderr
        wheel.unlink()
        return json.loads(got.stdout)["id"]

    def test_a_runtime_made_with_a_wheel_of_this_machine(self, tiny, index, web, other, of_a_wheel, tmp_path):
        file = tmp_path / "mine.bundle"
        done = tiny.paceline("bundle", "create", of_a_wheel, "-o", str(file), "--json", **web)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert [r["id"] for r in said["releases"]] == [of_a_wheel]
        assert [f["name"] for f in said["files"]] == [NAMES[1], "tinyengine-1.0.0-py3-none-any.whl"]

        index.asked.clear()
        installed = other("install", file, **web)
        assert installed.stdout == f"Installed {of_a_wheel}, selected for TINY\n", installed.stderr
        assert index.asked == []

    def test_its_wheel_has_to_be_what_it_was(self, tiny, web, of_a_wheel, tmp_path):
        (kept,) = tiny.home.glob("runtimes/*/packages/*.whl")
        for change, said in [
            (lambda: tiny.write_wheel(kept, "tinyengine", {"tinyengine/x.py": ""}), "is not the file that it was made"),
            (kept.unlink, f"{kept} is gone"),
        ]:
            change()
            done = tiny.paceline("bundle", "create", of_a_wheel, "-o", str(tmp_path / "b"), **web)
            assert (done.returncode, said in done.stderr) == (1, True), done.stderr

    def test_made_for_other_machines_is_refused(self, tiny, index, tmp_path, other):
        far = replace(tiny.release(), platform="windows", requires=Requirements(os="windows"))
        recipe = Recipe((Package("tinydep", "1.0.0", (tiny.hash(NAMES[1]),)),))
        file = create(
            [replace(far, recipe=recipe)],
            tmp_path / "far",
            [PYTHON],
            tmp_path / "maker",
            silent,
            store=Store(tiny.home),
        ).path
        done = other("install", file)
        assert (done.returncode, done.stdout) == (3, "")
        assert (
            "holds nothing that runs on this machine: tiny-windows@1.0.0 needs Windows; this machine runs"
            in done.stderr
        )
        assert "incompatiblePlatform" in other("ls", file).stdout

        old = create(
            [tiny.release()], tmp_path / "old", ["3.9"], tmp_path / "maker", silent, store=Store(tiny.home)
        ).path
        done = other("install", old)
        assert done.returncode == 3
        assert f"is for Python 3.9; runtimes are built on Python {PYTHON} here" in done.stderr

    def test_it_is_chosen_by_the_policy_of_every_installation(self, tiny, index, web, tmp_path):
        """Channel, holds and wheels as asked, for this machine and for another platform; a version by its name."""
        file = str(tmp_path / "chosen.bundle")
        (dependency, _) = tiny.release().recipe.packages
        wheel = replace(tiny.release("1.0"), platform="any-wheel", rank=-1, recipe=Recipe((dependency,)))
        built = [tiny.release("1.0"), tiny.release("1.1"), replace(tiny.release("2.0"), channel="beta", rank=9)]
        far = [replace(r, platform="far", requires=Requirements(os="windows"), recipe=wheel.recipe) for r in built]
        tiny.offer(wheel, *built, *far)
        Store(tiny.home).hold("tiny-any-cpu@1.1", "it crashes")
        Store(tiny.home).hold("tiny-far@1.1", "it crashes")

        def chosen(*arguments, **variables):
            done = tiny.paceline("bundle", "create", *arguments, "-o", file, "--json", **web, **variables)
            assert done.returncode == 0, done.stderr
            return [r["id"] for r in json.loads(done.stdout)["releases"]], done.stderr

        ids, said = chosen("tiny")
        assert (ids, "tiny-any-cpu@1.1 is held and was passed over" in said) == (["tiny-any-cpu@1.0"], True)
        assert chosen("tiny", "--channel", "beta")[0] == ["tiny-any-cpu@2.0"]
        assert chosen("tiny@1.1")[0] == ["tiny-any-cpu@1.1"]
        assert chosen("tiny", PACELINE_PREFER="wheel")[0] == ["tiny-any-wheel@1.0"]
        assert chosen("tiny-far")[0] == chosen("tiny", "--platform", "far")[0] == ["tiny-far@1.0"]
        assert chosen("tiny", "--platform", "far", PACELINE_UPDATE_CHANNEL="nightly")[0] == ["tiny-far@2.0"]

    def test_wrong_wishes(self, tiny, tmp_path):
        file = str(tmp_path / "b")
        for arguments, status, said in [
            (["create", "tiny", "-o", file, "--platform", "moon"], 3, "no release matches 'tiny' for moon"),
            (["create", "tiny", "-o", file, "--python", "three"], 2, "no version of Python"),
            (["install", file], 3, "does not exist"),
            (["install", str(tmp_path)], 1, "it is a folder"),
        ]:
            done = tiny.paceline("bundle", *arguments)
            assert (done.returncode, said in done.stderr) == (status, True), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL there")
def test_a_kill_while_it_is_installed(tiny, made):
    """At each step of bringing files and of uv's runs; the next try succeeds, without a network."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from paceline import paths, plugins\nfrom paceline.manager.bundles import read_bundle\n"
        "from paceline.manager.installation import install\nfrom paceline.store import Store, transaction\n"
        "left = int(sys.argv[2])\n"
        "def at(step, path):\n    global left\n    left -= 1\n"
        "    if left < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "bundle = read_bundle(Path(sys.argv[1]))\nengine = plugins.load().engine('tiny')\n"
        "with transaction.observed(at):\n"
        "    install(bundle.releases[0], Store(paths.home()), engine, supply=bundle)\n"
    )
    for step in (5, 8, 11, 14, 17, 20, 25, 30):
        tiny.python("-c", code, str(made.path), str(step), PACELINE_OFFLINE="1")
        assert Store(tiny.home).runtimes() == ()
    done = tiny.python("-c", code, str(made.path), "1000000", PACELINE_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert [r.id for r in Store(tiny.home).runtimes()] == ["tiny-any-cpu@1.0.0"]
    Depot(tiny.cache).clear()
    assert not list(tiny.cache.glob("packages/files/*/*.[wgd]*"))


@pytest.mark.runtime
def test_a_real_llama_cpp(llama_cpp_runtime, tmp_path, monkeypatch):
    """Carried to an empty home, where it generates without a network; what was compiled here before is used again."""
    from paceline import plugins

    if reason := why_unreachable(os.environ):
        pytest.skip(f"no package index answers: {reason}")
    monkeypatch.setenv("PACELINE_HOME", str(tmp_path / "home"))
    file = str(tmp_path / "llama.bundle")
    command = [sys.executable, "-m", "paceline", "bundle"]
    subprocess.run([*command, "create", llama_cpp_runtime.id, "-o", file], check=True)
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    subprocess.run([*command, "install", file], check=True)

    (runtime,) = Store(tmp_path / "home").runtimes()
    assert (runtime.id, Store(tmp_path / "home").selected("gguf")) == (llama_cpp_runtime.id, runtime)
    assert "draft" in start_once(runtime, plugins.load().engine("llama.cpp"))["features"]
