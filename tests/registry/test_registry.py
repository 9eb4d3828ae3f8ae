from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from paceline import paths, plugins
from paceline.errors import RegistryError
from paceline.registry import load_registry, read_registry
from paceline.registry.reading import parse_registry

SHA = "a" * 64
GOOD = {
    "schema_version": 1,
    "releases": [
        {
            "engine": "llama.cpp",
            "version": "1.0",
            "platform": "linux-x86_64-cpu",
            "formats": ["gguf"],
            "requires": {"os": "linux", "gpu": {"make": "nvidia", "min_driver": "580"}, "tools": ["c++"]},
            "recipe": {
                "packages": [{"name": "a", "version": "1", "sha256": [SHA], "source": True}],
                "build_packages": [{"name": "b", "version": "2", "sha256": [SHA]}],
                "config_settings": {"a": {"cmake.define.X": "ON"}},
                "prune": ["lib", "share/doc"],
                "expected_build_s": 60,
                "roots": ["a==1"],
            },
        }
    ],
}


@pytest.fixture
def written(tmp_path):
    def write(value):
        file = tmp_path / "registry.json"
        file.write_text(value if isinstance(value, str) else json.dumps(value))
        return file

    return write


def test_everything_is_read(written):
    (release,) = read_registry(written(GOOD))

    assert release.id == "llama.cpp-linux-x86_64-cpu@1.0"
    assert release.requires.gpu.min_driver == "580"
    assert release.requires.tools == ("c++",)
    assert release.recipe.packages[0].source
    assert release.recipe.packages[0].sha256 == (SHA,)
    assert release.recipe.build_packages[0].name == "b"
    assert release.recipe.config_settings == {"a": {"cmake.define.X": "ON"}}
    assert release.recipe.prune == ("lib", "share/doc")
    assert release.recipe.unpinned == ()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["schema_version"], 3, "$.schema_version: 3 is not 1 or 2"),
        (["releases"], {}, "$.releases: expected a list"),
        (["releases", 0, "engine"], None, "$.releases[0].engine: expected a text"),
        (["releases", 0, "version"], "../1", "$.releases[0].version: '../1' does not have the form"),
        (["releases", 0, "platform"], "a/b", "$.releases[0].platform: 'a/b' does not have the form"),
        (["releases", 0, "formats"], "gguf", "$.releases[0].formats: expected a list"),
        (["releases", 0, "rank"], True, "$.releases[0].rank: expected a whole number"),
        (["releases", 0, "colour"], "red", "$.releases[0].colour: is no field"),
        (["releases", 0, "requires", "os"], "beos", "$.releases[0].requires.os: 'beos' is none of"),
        (["releases", 0, "requires", "gpu"], {}, "$.releases[0].requires.gpu: 'make' is missing"),
        (["releases", 0, "recipe", "packages", 0], 1, "$.releases[0].recipe.packages[0]: expected an object"),
        (["releases", 0, "recipe", "packages", 0, "sha256"], [SHA, "b"], ".packages[0].sha256[1]: 'b' does not have"),
        (["releases", 0, "recipe", "packages", 0, "sha256"], [], ".packages[0]: has neither sha256 nor an index"),
        (["releases", 0, "recipe", "packages", 0, "size"], [], ".packages[0].size: has 0 sizes for 1 files"),
        (["releases", 0, "recipe", "packages", 0, "size"], [-1], ".packages[0].size[0]: -1 is no size"),
        (["releases", 0, "recipe", "packages", 0, "size"], [0], ".packages[0].size: [0] has a size that no package"),
        (["releases", 0, "recipe", "packages", 0, "size"], [10**12], ".packages[0].size: [1000000000000] has a size"),
        (["releases", 0, "recipe", "packages", 0, "source"], "yes", ".packages[0].source: expected true or false"),
        (["releases", 0, "recipe", "build_packages", 0, "name"], "b --pre", ".build_packages[0].name: 'b --pre'"),
        (["releases", 0, "recipe", "config_settings", "a"], ["X"], ".config_settings['a']: expected an object"),
        (["releases", 0, "recipe", "prune"], ["../../home"], ".prune[0]: '../../home' is no path below"),
        (["releases", 0, "recipe", "prune"], ["/etc"], ".prune[0]: '/etc' is no path below"),
        (["releases", 0, "recipe", "prune"], [""], ".prune[0]: '' is no path below"),
        (["releases", 0, "recipe", "expected_build_s"], "1 min", ".expected_build_s: expected a number"),
        (["releases", 0, "requires", "python"], "three", ".requires.python: 'three' cannot be read"),
        (["releases", 0, "requires", "gpu", "min_driver"], "new", ".gpu.min_driver: 'new' does not have the form"),
        (["releases", 0, "requires", "tools"], ["c++|"], ".requires.tools[0]: '' is no command"),
        (["releases", 0, "requires", "tools"], ["../cc"], ".requires.tools[0]: '../cc' is no command"),
        (["releases", 0, "requires", "tools"], ["nvcc>=new"], ".requires.tools[0]: '>=new' cannot be read"),
        (["releases", 0, "recipe", "roots"], ["a b"], ".roots[0]: 'a b' cannot be read"),
    ],
)
def test_an_error_names_its_place(written, path, value, said):
    data = copy.deepcopy(GOOD)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value

    with pytest.raises(RegistryError) as caught:
        read_registry(written(data))
    assert said in caught.value.message


PACKAGE = ["releases", 0, "recipe", "packages", 0]
RECIPE = ["releases", 0, "recipe"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        # Folders that are made, replaced or deleted.
        (["releases", 0, "engine"], "..", ".engine: '..' does not have the form"),
        (["releases", 0, "version"], "1/../../x", ".version: '1/../../x' does not have the form"),
        (["releases", 0, "version"], "1" * 61, ".version: "),
        (["releases", 0, "platform"], "C:x", ".platform: 'C:x' does not have the form"),
        ([*RECIPE, "prune"], ["lib/../../../x"], ".prune[0]: 'lib/../../../x' is no path below"),
        ([*RECIPE, "prune"], ["..\\..\\x"], "is no path below"),
        ([*RECIPE, "prune"], ["C:\\x"], "is no path below"),
        ([*RECIPE, "prune"], ["lib\0"], ".prune[0]: 'lib\\x00' has a character that cannot be printed"),
        # Lines of the lock that uv reads.
        ([*PACKAGE, "marker"], "os_name == 'posix'\n--index-url https://x", ".marker: "),
        ([*PACKAGE, "marker"], "os_name == 'posix' --index-url https://x", ".marker: "),
        ([*PACKAGE, "name"], "-r /etc/passwd", ".packages[0].name: '-r /etc/passwd' does not have the form"),
        ([*PACKAGE, "version"], "1 @ https://x/y.whl", ".packages[0].version: "),
        ([*PACKAGE, "version"], "1\n-r x", ".packages[0].version: "),
        ([*RECIPE, "roots"], ["a @ file:///etc/passwd"], ".roots[0]: 'a @ file:///etc/passwd' names an address"),
        ([*RECIPE, "roots"], ["-r /etc/passwd"], ".roots[0]: '-r /etc/passwd' cannot be read"),
        ([*RECIPE, "build_roots"], ["git+https://x/y"], ".build_roots[0]: 'git+https://x/y' cannot be read"),
        # Options of uv.
        ([*PACKAGE, "index"], "--offline", ".index: '--offline' is no address of an index page"),
        ([*PACKAGE, "index"], "name=https://x", ".index: 'name=https://x' is no address"),
        ([*PACKAGE, "index"], "/etc", ".index: '/etc' is no address"),
        ([*PACKAGE, "index"], "https://me:secret@x/whl", ".index: "),
        ([*PACKAGE, "index"], "https://x/${HOME}", ".index: "),
        ([*PACKAGE, "index"], "https://x:y/", ".index: 'https://x:y/' is no address"),
        ([*RECIPE, "unhashed"], {"a": "ssh://x"}, ".unhashed['a']: 'ssh://x' is no address"),
        ([*RECIPE, "unhashed"], {"a b": "https://x"}, ".unhashed['a b']: 'a b' does not have the form"),
        ([*RECIPE, "config_settings"], {"a:x": {"k": "v"}}, ".config_settings['a:x']: 'a:x' does not have the form"),
        ([*RECIPE, "config_settings"], {"a": {"k=v": "w"}}, ".config_settings['a']['k=v']: 'k=v' does not have"),
        ([*RECIPE, "config_settings"], {"a": {"k": "v\nw"}}, "has a character that cannot be printed"),
        # What terminals show, and what sizes mean.
        (["releases", 0, "notes"], "\x1b[2Jfine", ".notes: '\\x1b[2Jfine' has a character that cannot be printed"),
        (["releases", 0, "notes"], "evil\u202etxt", "has a character that cannot be printed"),
        (["releases", 0, "features"], ["\x1b[2J"], ".features[0]: "),
        ([*RECIPE, "expected_build_s"], float("inf"), ".expected_build_s: inf is no size and no time"),
        ([*RECIPE, "expected_build_s"], float("nan"), ".expected_build_s: nan is no size and no time"),
        ([*RECIPE, "installed_bytes"], -1, ".installed_bytes: -1 is no size"),
    ],
)
def test_nothing_reaches_beyond_the_runtime(written, path, value, said):
    test_an_error_names_its_place(written, path, value, said)


def test_what_is_nested_without_end(written):
    with pytest.raises(RegistryError, match="nested too deeply"):
        read_registry(written("[" * 100_000))


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ({"index": "file:///srv/wheels"}, "is a folder of this machine"),
        ({"index": "file:///srv/wheels", "sha256": [SHA]}, "is a folder of this machine"),
        ({"index": "http://example.org/whl"}, "publishes no hashes and is not asked over https"),
        ({"index": "https://example.org/whl"}, None),
        ({"index": "http://127.0.0.1:8000/whl"}, None),
        ({"index": "http://example.org/whl", "sha256": [SHA]}, None),
    ],
)
def test_where_a_stranger_may_have_packages_taken_from(package, said):
    data = copy.deepcopy(GOOD)
    data["releases"][0]["recipe"]["packages"] = [{"name": "a", "version": "1", **package}]
    text = json.dumps(data).encode()

    assert parse_registry(text, "it", way_out="no")
    if said is None:
        assert parse_registry(text, "it", way_out="no", remote=True)
    else:
        with pytest.raises(RegistryError, match=said):
            parse_registry(text, "it", way_out="no", remote=True)


def test_a_release_is_listed_once(written):
    with pytest.raises(RegistryError, match=r"\$\.releases\[1\]: llama\.cpp-linux-x86_64-cpu@1\.0 is listed twice"):
        read_registry(written({**GOOD, "releases": GOOD["releases"] * 2}))


def test_what_is_no_json_and_what_is_absent(written, tmp_path):
    with pytest.raises(RegistryError, match="is no JSON"):
        read_registry(written("<html>"))
    with pytest.raises(RegistryError, match="cannot be read"):
        read_registry(tmp_path / "none.json")


def test_releases_of_absent_engines_are_dropped_and_those_of_engines_added(tiny, written):
    loaded = plugins.Plugins((), {"tiny": tiny.engine})
    tiny.offer(tiny.release("1.0"), tiny.release("2.0"))

    assert [r.id for r in load_registry(loaded, written(GOOD)).releases] == ["tiny-any-cpu@2.0", "tiny-any-cpu@1.0"]


def test_a_release_of_an_engine_replaces_the_registrys(tiny, written):
    shipped = copy.deepcopy(GOOD)
    shipped["releases"][0] |= {"engine": "tiny", "version": "1.0", "platform": "any-cpu"}
    tiny.offer(replace(tiny.release("1.0"), features=("own",)))
    loaded = plugins.Plugins((), {"tiny": tiny.engine})

    (release,) = load_registry(loaded, written(shipped)).match("tiny")
    assert [p.name for p in release.recipe.packages] == ["tinydep", "tinyengine"]


@pytest.mark.parametrize("what", ["raises", "another engine's", "no release"])
def test_an_engine_that_brings_nonsense_is_named(tiny, written, what, monkeypatch):
    def releases():
        if what == "raises":
            raise OSError("no disk")
        return [replace(tiny.release(), engine="mlx") if what == "another engine's" else "1.0"]

    monkeypatch.setattr(tiny.engine, "releases", releases)
    with pytest.raises(RegistryError, match="engine tiny"):
        load_registry(plugins.Plugins((), {"tiny": tiny.engine}), written(GOOD))


SHIPPED = read_registry(paths.registry_file())


@pytest.mark.parametrize("release", SHIPPED, ids=lambda r: r.id)
def test_a_shipped_release_is_complete(release):
    requires, recipe = release.requires, release.recipe
    assert requires.os in release.platform.replace("mac-", "macos-")
    assert requires.arch in release.platform
    assert all(SpecifierSet(requires.python).contains(v) for v in ("3.11.0", "3.14.9"))
    assert not SpecifierSet(requires.python).contains("3.10.9")
    for package in (*recipe.packages, *recipe.build_packages):
        Requirement(f"{package.name}=={package.version}")
        assert package.marker is None or Marker(package.marker)
    built = {p.name for p in recipe.packages if p.source}
    assert built == set(recipe.config_settings)
    assert bool(built) == bool(requires.tools) == bool(recipe.build_packages) == (recipe.expected_build_s is not None)
    # Only the wheel pages of llama-cpp-python publish no hashes, and what comes from there ranks below its source.
    assert {p.name for p in recipe.unpinned} <= {"llama-cpp-python"}
    assert all((p.index is not None) == (not p.sha256) for p in recipe.packages)
    if recipe.unpinned:
        twins = [
            r for r in SHIPPED if r.engine == release.engine and r.requires.os == requires.os and not r.recipe.unpinned
        ]
        assert all(release.rank < twin.rank for twin in twins)


def test_every_engine_and_platform_is_there():
    there = {(r.engine, r.requires.os, r.requires.arch) for r in SHIPPED}
    assert there == {
        *(("llama.cpp", os, arch) for os, arch in _PLATFORMS),
        ("llama.cpp-cuda", "linux", "x86_64"),
        ("llama.cpp-cuda", "windows", "x86_64"),
        ("mlx", "macos", "arm64"),
        ("mlx", "linux", "x86_64"),
    }


_PLATFORMS = [("linux", "x86_64"), ("linux", "arm64"), ("macos", "arm64"), ("windows", "x86_64")]


@pytest.mark.parametrize("release", [r for r in SHIPPED if "cuda" in r.platform], ids=lambda r: r.id)
def test_cuda_releases_name_their_driver(release):
    gpu = release.requires.gpu
    assert gpu.make == "nvidia"
    assert gpu.min_driver == ("580" if "cuda13" in release.platform else "525.60.13")
    assert gpu.min_compute_capability is not None


def test_the_registry_names_no_index_but_the_wheel_pages():
    text = paths.registry_file().read_text(encoding="utf-8")
    pages = {p.index for r in SHIPPED for p in r.recipe.packages if p.index}
    for page in pages:
        text = text.replace(page, "")
    assert "://" not in text


def test_the_size_of_an_installed_release_is_known_where_it_was_measured():
    sizes = {r.name: r.recipe.installed_bytes for r in SHIPPED}

    assert sizes["llama.cpp-linux-x86_64-cpu"] > 50_000_000
    assert sizes["llama.cpp-cuda-linux-x86_64-cuda12"] is None


def test_of_the_users_own_file_it_is_said_how_to_mend_that(tiny, tmp_path):
    file = tmp_path / "mine.json"
    for text, said in {
        '{"schema_version": 1, "releases": [{}]}': "help: mend the file at that place",
        "{": "help: give a registry: a JSON file",
    }.items():
        file.write_text(text)
        for command in (("verify",), ("build", "--dry-run")):
            done = tiny.paceline("registry", *command, str(file))
            assert done.returncode == 1
            assert said in done.stderr
            assert "reinstall" not in done.stderr
