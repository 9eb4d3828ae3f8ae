"""Bundles of versions that the package index has, for other Pythons and platforms than those here: real uv and HTTP."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from paceline.manager.bundles import read_bundle
from paceline.manager.installation import install
from paceline.packages import python_versions
from paceline.packages.locked import applies
from paceline.registry import found_file, read_registry
from paceline.store import Store
from paceline.types import Package, Recipe, Requirements

HERE = f"3.{sys.version_info.minor}"
NEXT, AFTER = (f"3.{sys.version_info.minor + n}" for n in (1, 2))
LINUX = "manylinux_2_17_x86_64"
WINDOWS = "win_amd64"


class Index:
    """A package index whose wheels are each for one Python, one platform, or any."""

    def __init__(self, server, folder, tiny):
        self.server, self._folder, self._tiny = server, folder, tiny
        self._uploads = {}

    def publish(self, project, version, python=None, platform="any", needs=()):
        """A wheel for `python`, or any, that needs what `needs` says."""
        tag = f"cp{python.replace('.', '')}" if python else "py3"
        name = f"{project}-{version}-{tag}-{tag if python else 'none'}-{platform}.whl"
        files = {f"{project}/__init__.py": f"NAME = {name!r}\n"}
        if project == "tinyengine":
            files |= {"tinyengine/__main__.py": self._tiny.worker, "tinyengine/settings.json": "{}"}
        path = self._folder / name
        self._tiny.write_wheel(path, project, files, version, "true", tuple(needs))
        self._add(name, path)
        return name

    def publish_source(self, project, version):
        name = f"{project}-{version}.tar.gz"
        self._add(name, self._tiny.index / "tinyengine-1.0.0.tar.gz")

    def _add(self, name: str, path: Path):
        self.server.add_file(name, path.read_bytes())
        project = name.partition("-")[0]
        self._uploads.setdefault(project, {})[name] = "2030-01-01"
        self.server.publish(project, self._uploads[project])


@pytest.fixture
def index(tiny, file_server, tmp_path, monkeypatch):
    """Versions 1.0 and 1.1 of the engine; both need `numbers`, whose versions have wheels for some Pythons each."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    monkeypatch.setenv("UV_DEFAULT_INDEX", file_server.index)
    made = Index(file_server, tmp_path, tiny)
    for version in ("1.0", "1.1"):
        needs = [f"old<2; python_version < '{NEXT}'", f"old>=2; python_version >= '{NEXT}'", "numbers"]
        made.publish("tinyengine", version, needs=needs)
    made.publish("old", "1.0")
    made.publish("old", "2.0")
    for platform in (LINUX, WINDOWS):
        made.publish("numbers", "1.0", HERE, platform)
        made.publish("numbers", "1.0", NEXT, platform)
        made.publish("numbers", "2.0", NEXT, platform)
    made.publish("numbers", "2.0", AFTER, LINUX)
    package = Package("tinyengine", "1.0", (file_server.sha256("tinyengine-1.0-py3-none-any.whl"),))
    recipe = Recipe((package,), roots=("tinyengine==1.0",))
    linux = Requirements(
        os="linux", arch="x86_64", min_glibc="2.28", python=f">={HERE},<3.{sys.version_info.minor + 4}"
    )
    known = replace(tiny.release("1.0"), platform="linux", requires=linux, recipe=recipe)
    tiny.offer(known, replace(known, platform="windows", requires=replace(linux, os="windows", min_glibc=None)))
    return made


@pytest.fixture
def bundle(tiny, index, tmp_path):
    """A function that runs `paceline bundle create` and returns what it ended with; the file is `file`."""

    def run(*arguments, **variables):
        place = {"UV_DEFAULT_INDEX": index.server.index, "PIP_NO_INDEX": "", "UV_FIND_LINKS": ""} | variables
        return tiny.paceline("bundle", "create", *arguments, "-o", str(run.file), "--json", **place)

    def made(*arguments):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        return read_bundle(run.file), done.stderr

    run.file, run.made = tmp_path / "made.bundle", made
    return run


def files(made, python):
    """The names of what a bundle's one release takes for `python`, as its lock says."""
    (release,) = made.releases
    pinned = {digest for p in release.recipe.packages if applies(p, python) for digest in p.sha256}
    return {file.name for file in made.listed if file.sha256 in pinned}


def locked(*pythons):
    """Those among which is looked for what there is instead."""
    return [python for python in pythons if python in python_versions.LOCKED]


def remembered(tiny):
    return {release.id: release for release in read_registry(found_file(tiny.home))}


def test_for_another_python_than_this(tiny, index, bundle):
    """What its dependencies say of that Python holds, and the versions are those that have wheels for it."""
    made, said = bundle.made("tiny@1.1", "--python", AFTER)

    assert "tiny@1.1 is not listed: asking the package index for tinyengine 1.1" in said
    assert made.pythons == (AFTER,)
    tag = f"cp{AFTER.replace('.', '')}"
    wheels = {f"numbers-2.0-{tag}-{tag}-{LINUX}.whl", "old-2.0-py3-none-any.whl", "tinyengine-1.1-py3-none-any.whl"}
    assert {file.name for file in made.listed} == wheels
    assert made.releases[0].requires.python == f"=={AFTER}.*"
    assert "asking" not in bundle.made("tiny@1.1", "--python", AFTER)[1]


def test_one_lock_for_several_pythons(tiny, index, bundle):
    """They share the versions that each can have; where they cannot, each has its own."""
    made, _ = bundle.made("tiny@1.1", "--python", AFTER, "--python", HERE, "--python", NEXT)

    (release,) = made.releases
    assert [(p.name, p.version, p.marker) for p in release.recipe.packages] == [
        ("numbers", "1.0", f"python_version <= '{NEXT}'"),
        ("numbers", "2.0", f"python_version >= '{AFTER}'"),
        ("old", "1.0", f"python_version <= '{HERE}'"),
        ("old", "2.0", f"python_version >= '{NEXT}'"),
        ("tinyengine", "1.1", None),
    ]
    assert release.requires.python == f">={HERE},<3.{sys.version_info.minor + 3}"
    for python, old, numbers in ((HERE, "1.0", "1.0"), (NEXT, "2.0", "1.0"), (AFTER, "2.0", "2.0")):
        tag = f"cp{python.replace('.', '')}"
        mine = {f"numbers-{numbers}-{tag}-{tag}-{LINUX}.whl", f"old-{old}-py3-none-any.whl"}
        assert files(made, python) >= mine
        assert {f for f in files(made, python) if f.startswith("old")} == {f"old-{old}-py3-none-any.whl"}


@pytest.mark.skipif(sys.platform != "linux", reason="its wheels are for Linux")
def test_it_is_installed_where_nothing_answers(tiny, index, bundle, monkeypatch, tmp_path):
    bundle.made("tiny@1.1", "--python", AFTER, "--python", HERE)
    made, _ = bundle.made("tiny@1.1", "--python", HERE, "--python", AFTER)
    index.server.asked.clear()
    monkeypatch.setenv("PACELINE_OFFLINE", "1")

    runtime = install(made.releases[0], Store(tmp_path / "other"), tiny.engine, supply=made, cache=tmp_path / "empty")

    assert index.server.asked == []
    installed = {p.name for p in runtime.directory.glob("env/lib/python*/site-packages/*.dist-info")}
    assert installed == {"tinyengine-1.1.dist-info", "old-1.0.dist-info", "numbers-1.0.dist-info"}


def test_what_is_locked_already_gets_the_other_python_besides(tiny, index, bundle):
    """And what it is locked to for the first one stays, though there is something newer by now."""
    before, _ = bundle.made("tiny@1.1")
    index.publish("old", "1.5")
    index.publish("old", "2.5")
    index.publish("numbers", "1.5", HERE, LINUX)
    index.publish("numbers", "1.5", NEXT, LINUX)

    made, said = bundle.made("tiny@1.1", "--python", NEXT)

    assert f"tiny-linux@1.1 is locked for Python =={HERE}.* only: asking the package index for {NEXT}" in said
    assert {(p.name, p.version, p.marker) for p in made.releases[0].recipe.packages} == {
        ("numbers", "1.0", None),
        ("old", "1.0", f"python_version <= '{HERE}'"),
        ("old", "2.5", f"python_version >= '{NEXT}'"),
        ("tinyengine", "1.1", None),
    }
    assert remembered(tiny)["tiny-linux@1.1"] == made.releases[0]
    assert {f.name for f in bundle.made("tiny@1.1")[0].listed} == {f.name for f in before.listed}


def test_an_update_that_finds_it_again_keeps_the_other_pythons(tiny, index, bundle):
    variables = {"UV_DEFAULT_INDEX": index.server.index, "PIP_NO_INDEX": "", "UV_FIND_LINKS": ""}
    bundle.made("tiny@1.1", "--python", NEXT)
    tiny.paceline("runtime", "get", "tiny@1.0", **variables)
    check = tiny.paceline("runtime", "update", "--check", **variables)
    assert check.returncode == 100, check.stderr
    found = remembered(tiny)["tiny-linux@1.1"]
    assert python_versions.named_by(found.requires.python) == [HERE, NEXT]


def test_for_another_platform(tiny, index, bundle):
    made, _ = bundle.made("tiny@1.1", "--platform", "windows", "--python", NEXT)
    tag = f"cp{NEXT.replace('.', '')}"
    assert [r.id for r in made.releases] == ["tiny-windows@1.1"]
    assert f"numbers-2.0-{tag}-{tag}-{WINDOWS}.whl" in files(made, NEXT)

    both, _ = bundle.made("tiny@1.1", "--platform", "windows", "--python", NEXT, "--python", HERE)
    assert {f.rpartition("-")[2] for f in files(both, HERE) if f.startswith("numbers")} == {f"{WINDOWS}.whl"}
    assert files(made, NEXT) <= {f.name for f in both.listed}


@pytest.mark.skipif(sys.platform != "linux", reason="the release for this machine is for Linux")
def test_what_was_found_for_others_only_is_asked_for_here(tiny, index, bundle):
    """The same version by its name: of this machine for a bundle without a platform, and of this Python to install."""
    bundle.made("tiny@1.1", "--platform", "windows", "--python", NEXT)
    assert [r.id for r in bundle.made("tiny@1.1", "--python", NEXT)[0].releases] == ["tiny-linux@1.1"]

    variables = {"UV_DEFAULT_INDEX": index.server.index, "PIP_NO_INDEX": "", "UV_FIND_LINKS": ""}
    done = tiny.paceline("runtime", "get", "tiny@1.1", "--json", **variables)
    assert done.returncode == 0, done.stderr
    assert f"tiny-linux@1.1 is locked for Python =={NEXT}.* only: asking the package index for {HERE}" in done.stderr
    assert json.loads(done.stdout)["id"] == "tiny-linux@1.1"


def test_a_source_distribution_is_no_wheel(tiny, index, bundle):
    """The newest version has only its source for that Python, and an older one that has a wheel is taken."""
    index.publish("numbers", "3.0", NEXT, LINUX)
    index.publish_source("numbers", "3.0")
    made, _ = bundle.made("tiny@1.1", "--python", HERE)
    assert [(p.name, p.version) for p in made.releases[0].recipe.packages if p.name == "numbers"] == [
        ("numbers", "1.0")
    ]


def test_a_python_that_has_no_files(tiny, index, bundle):
    far = f"3.{sys.version_info.minor + 3}"
    done = bundle("tiny@1.1", "--python", far)
    assert done.returncode == 3
    there = python_versions.listed(locked(HERE, NEXT, AFTER))
    has = f"the package index has tinyengine 1.1 with all that it needs for Python {there} on linux"
    assert f"{has}, and not for Python {far} on linux: tinyengine==1.1 cannot be resolved" in done.stderr
    assert f"choose Python {there} with --python" in done.stderr
    assert not bundle.file.exists()


def test_a_platform_that_has_no_files(tiny, index, bundle):
    for listed in ("numbers", "old"):
        index.server.files.pop(f"/simple/{listed}/", None)
    index._uploads = {"tinyengine": index._uploads["tinyengine"]}
    index.publish("old", "2.0")
    index.publish("numbers", "2.0", NEXT, LINUX)
    done = bundle("tiny@1.1", "--python", NEXT, "--platform", "windows")
    assert done.returncode == 3
    has = "the package index has tinyengine 1.1 with all that it needs for linux"
    assert f"{has}, and not for Python {NEXT} on windows: " in done.stderr
    assert "choose one of these platforms with --platform" in done.stderr
    unknown = bundle("tiny@1.1", "--platform", "moon")
    assert (unknown.returncode, "it is there for linux, windows" in unknown.stderr) == (3, True), unknown.stderr


def test_a_python_that_the_engine_is_not_made_for(tiny, index, bundle):
    for query in ("tiny@1.1", "tiny@1.0"):
        done = bundle(query, "--python", "3.9")
        assert done.returncode == 3
        assert f"is made for Python >={HERE}," in done.stderr
        assert "and 3.9 is not of these" in done.stderr
        assert f"choose Python {HERE}" in done.stderr


def test_what_a_registry_has_locked_says_for_which_pythons_there_are_files(tiny, index, bundle):
    hashes = tuple(
        digest for name in index._uploads["numbers"] if (digest := index.server.sha256(name)) and LINUX in name
    )
    (engine,) = (Package("tinyengine", "1.0", (index.server.sha256("tinyengine-1.0-py3-none-any.whl"),)),)
    recipe = Recipe((engine, Package("numbers", "1.0", hashes)))
    linux = Requirements(os="linux", arch="x86_64", min_glibc="2.28")
    tiny.offer(replace(tiny.release("1.0"), platform="linux", requires=linux, recipe=recipe))
    done = bundle("tiny@1.0", "--python", AFTER)
    assert done.returncode == 1
    there = python_versions.listed(locked(HERE, NEXT))
    assert f"for Python {there} there are files of all packages" in done.stderr
    assert f"choose Python {there} with --python" in done.stderr
