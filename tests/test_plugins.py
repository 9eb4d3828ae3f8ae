"""Plugins as they are installed: distributions on the path of a fresh process, broken in every way there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from paceline import Engine, ModelFormat, hookimpl

PACELINE_API = 1

class Good(Engine):
    name = "good"
    formats = ("goodformat",)
    def worker(self, runtime): ...

class GoodFormat(ModelFormat):
    name = "goodformat"
    def find(self, folder): return ()
    def files(self, path): return (path,)
    def read(self, path): ...

@hookimpl
def paceline_engines():
    return [Good()]

@hookimpl
def paceline_formats():
    yield GoodFormat()
"""
HEAD = """
from paceline import Engine, ModelFormat, hookimpl
PACELINE_API = 1
class E(Engine):
    name = "fresh"
    formats = ("fresh",)
    def worker(self, runtime): ...
"""


@pytest.fixture
def install(tmp_path):
    """Put a distribution on the path, as an installer leaves it: a module and a dist-info folder."""
    site = tmp_path / "site"
    site.mkdir()

    def install(distribution, source, *, version="1.0", entry_points=None, name=None):
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(source)
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points or f"[paceline]\n{name or distribution} = {module}\n")
        return info

    return install


@pytest.fixture
def paceline(tmp_path):
    """Run `paceline` in a process of its own that sees the installed distributions."""

    def run(*args, plugins=None, python=()):
        env = {k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")}
        env |= {"PYTHONPATH": str(tmp_path / "site"), "PACELINE_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
        env |= {"PACELINE_CACHE": str(tmp_path / "cache")}
        if plugins is not None:
            env["PACELINE_PLUGINS"] = plugins
        return subprocess.run(
            [sys.executable, *python, "-m", "paceline", *args], env=env, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture
def listing(paceline):
    """`paceline plugins --json`, by plugin name."""

    def listing(plugins=None):
        done = paceline("plugins", "--json", plugins=plugins)
        assert done.returncode == 0, done.stderr
        return {plugin["name"]: plugin for plugin in json.loads(done.stdout)}

    return listing


@pytest.fixture
def neighbours(install, listing):
    """What is listed beside a broken plugin: the first-party plugins and a good one, all active."""
    install("good", GOOD)
    before = listing()
    assert before["good"]["state"] == "active"
    return before


def test_first_party_plugins_come_in_like_any_other(listing):
    found = listing()
    assert found["llama-cpp"] == {
        "name": "llama-cpp", "module": "paceline_llama_cpp", "distribution": "paceline", "version": "0.1.0",
        "state": "active", "engines": ["llama.cpp", "llama.cpp-cuda"], "formats": [], "error": None,
        "managed": False, "source": "paceline",
    }  # fmt: skip
    assert (found["mlx"]["state"], found["mlx"]["engines"]) == ("active", ["mlx"])


def test_a_third_party_plugin_brings_an_engine_and_a_format(install, listing):
    install("paceline-good", GOOD, version="2.5", name="good")
    assert listing()["good"] == {
        "name": "good", "module": "paceline_good", "distribution": "paceline-good", "version": "2.5",
        "state": "active", "engines": ["good"], "formats": ["goodformat"], "error": None,
        "managed": False, "source": "environment",
    }  # fmt: skip


BROKEN = {
    "import error": ("import no_such_module", "import of bad failed: ModuleNotFoundError: No module named"),
    "syntax error": ("def :", "import of bad failed: SyntaxError: invalid syntax"),
    "exits": ("raise SystemExit(3)", "import of bad failed: SystemExit: 3"),
    "raises": ("raise RuntimeError('two\\nlines')", "import of bad failed: RuntimeError: two lines"),
    "error without a text": (
        "class E(Exception):\n    def __str__(self): raise ValueError\nraise E",
        "import of bad failed: E",
    ),
    "misspelt hook": (HEAD + "@hookimpl\ndef paceline_engins(): return [E()]", "unknown hook 'paceline_engins'"),
    "wrong argument": (
        HEAD + "@hookimpl\ndef paceline_engines(registry): return [E()]",
        "does not fit the hooks: PluginValidationError",
    ),
    "raises in a hook": (
        HEAD + "@hookimpl\ndef paceline_engines(): raise OSError('no device')",
        "paceline_engines raised OSError: no device",
    ),
    "raises in a generator": (
        HEAD + "@hookimpl\ndef paceline_engines():\n    yield E()\n    raise OSError('no device')",
        "paceline_engines raised OSError: no device",
    ),
    "exits in a hook": (
        HEAD + "@hookimpl\ndef paceline_formats(): raise SystemExit",
        "paceline_formats raised SystemExit",
    ),
    "no list": (HEAD + "@hookimpl\ndef paceline_engines(): return E()", "paceline_engines raised TypeError: 'E'"),
    "a class": (
        HEAD + "@hookimpl\ndef paceline_engines(): return [E]",
        "paceline_engines returned <class 'bad.E'>, which is no Engine",
    ),
    "another type": (
        HEAD + "@hookimpl\ndef paceline_formats(): return ['gguf']",
        "paceline_formats returned 'gguf', which is no ModelFormat",
    ),
    "an unprintable value": (
        HEAD + "class R:\n    def __repr__(self): raise ValueError\n@hookimpl\ndef paceline_engines(): return [R()]",
        "paceline_engines returned a R, which is no Engine",
    ),
    "abstract engine": (
        "from paceline import Engine, hookimpl\nPACELINE_API = 1\nclass A(Engine): name = 'a'\n"
        "@hookimpl\ndef paceline_engines(): return [A()]",
        "paceline_engines raised TypeError: Can't instantiate abstract class A",
    ),
    "engine without a name": (
        HEAD + "E.name = ''\n@hookimpl\ndef paceline_engines(): return [E()]",
        "paceline_engines returned a E whose name is ''",
    ),
    "name that raises": (
        HEAD + "E.name = property(lambda self: 1 / 0)\n@hookimpl\ndef paceline_engines(): return [E()]",
        "E.name raised ZeroDivisionError",
    ),
    "engine without formats": (
        HEAD + "E.formats = 'gguf'\n@hookimpl\ndef paceline_engines(): return [E()]",
        "engine 'fresh': `formats` is 'gguf', not a tuple of names",
    ),
    "upstream of another type": (
        HEAD + "E.upstream = 'fresh'\n@hookimpl\ndef paceline_engines(): return [E()]",
        "engine 'fresh': `upstream` is 'fresh', which is no Upstream",
    ),
    "releases that raise": (
        HEAD + "E.releases = lambda self: [1 / 0]\n@hookimpl\ndef paceline_engines(): return [E()]",
        "engine 'fresh': releases() raised ZeroDivisionError",
    ),
    "releases of another type": (
        HEAD + "E.releases = lambda self: ['1.0']\n@hookimpl\ndef paceline_engines(): return [E()]",
        "engine 'fresh': releases() returned '1.0', which is no release of it",
    ),
    "engine name taken by the host's plugin": (
        HEAD + "E.name = 'llama.cpp'\n@hookimpl\ndef paceline_engines(): return [E()]",
        "claims the engine name 'llama.cpp', already taken by the plugin llama-cpp",
    ),
    "engine name taken by itself": (
        HEAD + "@hookimpl\ndef paceline_engines(): return [E(), E()]",
        "claims the engine name 'fresh', already taken by itself",
    ),
    "format name taken by the host": (
        GOOD.replace('"goodformat"', '"gguf"').replace('"good"', '"bad"'),
        "claims the format name 'gguf', already taken by the host",
    ),
    "newer API": (HEAD + "PACELINE_API = 2", "was built for plugin API 2; this host has 1"),
    "no API": ("", "does not say which API version it was built for (PACELINE_API = 1)"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_named_and_stops_nobody(case, install, listing, paceline, neighbours):
    source, error = BROKEN[case]
    install("bad", source, version="6.6")
    found = listing()
    bad = found.pop("bad")
    assert error in bad.pop("error")
    assert bad == {
        "name": "bad", "module": "bad", "distribution": "bad", "version": "6.6", "state": "broken",
        "engines": [], "formats": [], "managed": False, "source": "environment",
    }  # fmt: skip
    assert found == neighbours
    shown = paceline("plugins")
    assert shown.returncode == 0
    assert "llama.cpp, llama.cpp-cuda  gguf" in shown.stdout
    assert "bad (bad 6.6): " in shown.stdout
    assert error in shown.stdout


def test_a_plugin_whose_format_is_refused_leaves_no_engine_behind(install, listing):
    install(
        "bad", HEAD + "@hookimpl\ndef paceline_engines(): return [E()]\n@hookimpl\ndef paceline_formats(): return [1]"
    )
    install("later", HEAD + "@hookimpl\ndef paceline_engines(): return [E()]")
    found = listing()
    assert found["bad"]["state"] == "broken"
    assert (found["later"]["state"], found["later"]["engines"]) == ("active", ["fresh"])


def test_an_engine_name_goes_to_the_first_distribution(install, listing, neighbours):
    install("zebra", GOOD.replace('"goodformat"', '"other"'))
    found = listing()
    assert found.pop("zebra")["error"] == "claims the engine name 'good', already taken by the plugin good"
    assert found == neighbours


def test_a_plugin_name_goes_to_the_first_distribution(install, paceline):
    install("alpha", GOOD, name="same")
    install("beta", GOOD, name="same", version="3.0")
    install("gamma", GOOD, name="llama-cpp")
    found = json.loads(paceline("plugins", "--json").stdout)
    states = {plugin["distribution"]: (plugin["state"], plugin["error"]) for plugin in found[2:]}
    assert [plugin["state"] for plugin in found[:2]] == ["active", "active"]
    assert states == {
        "alpha": ("active", None),
        "beta": ("broken", "the plugin name 'same' is already taken by alpha 1.0"),
        "gamma": ("broken", "the plugin name 'llama-cpp' is already taken by paceline 0.1.0"),
    }


def test_a_distribution_with_damaged_entry_points_is_named(install, listing, neighbours):
    install("bad", "", entry_points="[paceline]\nthis line has no equals sign\n")
    found = listing()
    bad = found.pop("bad")
    assert (bad["state"], bad["version"]) == ("broken", "1.0")
    assert "its entry_points.txt cannot be read" in bad["error"]
    assert found == neighbours


def test_a_distribution_without_metadata_stops_nobody(install, listing, neighbours):
    (install("bad", GOOD.replace('"good', '"bad')) / "METADATA").unlink()
    found = listing()
    bad = found.pop("bad")
    assert (bad["distribution"], bad["version"]) == ("unknown", None)
    assert found == neighbours


def test_a_module_that_is_two_plugins_is_one(install, listing, neighbours):
    install("twin", GOOD.replace('"good', '"twin'), entry_points="[paceline]\na-twin = twin\nb-twin = twin\n")
    found = listing()
    assert found.pop("a-twin")["state"] == "active"
    assert "does not fit the hooks: ValueError" in found.pop("b-twin")["error"]
    assert found == neighbours


def test_what_a_plugin_prints_does_not_spoil_the_json(install, listing, neighbours):
    install("chatty", "print('hello from the plugin')" + GOOD.replace('"good', '"chatty'))
    assert listing()["chatty"]["state"] == "active"


@pytest.mark.parametrize(
    ("value", "active"),
    [
        ("", set()),
        (" , ", set()),
        ("llama-cpp", {"llama-cpp"}),
        ("good, llama-cpp", {"good", "llama-cpp"}),
        (None, {"good", "llama-cpp", "mlx"}),
    ],
)
def test_the_environment_decides_before_anything_is_imported(install, listing, tmp_path, value, active):
    marker = tmp_path / "imported"
    install("good", f"open({str(marker)!r}, 'w').close()\n" + GOOD)
    found = listing(value)
    assert {name for name, plugin in found.items() if plugin["state"] == "active"} == active
    rest = set(found) - active
    assert {found[name]["state"] for name in rest} <= {"disabled"}
    assert set(found) == {"good", "llama-cpp", "mlx"}
    assert marker.exists() == ("good" in active)


def test_disabled_first_party_plugins_are_not_imported(paceline):
    done = paceline("plugins", plugins="", python=["-X", "importtime"])
    assert done.returncode == 0
    assert _imported(done.stderr) & {"paceline_llama_cpp", "paceline_mlx"} == set()
    assert "paceline_llama_cpp" in _imported(paceline("plugins", python=["-X", "importtime"]).stderr)


def test_asking_for_a_plugin_that_is_not_there_is_said(listing, paceline):
    found = listing("llama-cpp,lama-cpp")
    assert found["llama-cpp"]["state"] == "active"
    assert found["lama-cpp"]["state"] == "missing"
    assert found["lama-cpp"]["error"] == "PACELINE_PLUGINS asks for it and no installed distribution provides it"
    assert "lama-cpp: PACELINE_PLUGINS asks for it" in paceline("plugins", plugins="lama-cpp").stdout


def test_a_disabled_plugin_gives_up_its_names(install, listing):
    install("rival", HEAD + "E.name = 'llama.cpp'\n@hookimpl\ndef paceline_engines(): return [E()]")
    found = listing("rival")
    assert (found["rival"]["state"], found["rival"]["engines"]) == ("active", ["llama.cpp"])
    assert found["llama-cpp"]["state"] == "disabled"


ENGINES = {"llama_cpp", "mlx", "mlx_lm", "torch", "numpy"}
HEAVY = {"fastapi", "uvicorn", "pydantic", "httpx", "jinja2", "rich", "psutil"}


@pytest.mark.parametrize(
    ("args", "absent"),
    [
        (["--help"], ENGINES | HEAVY | {"paceline_llama_cpp", "paceline_mlx"}),
        (["plugins"], ENGINES | HEAVY | {"paceline_worker"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_host_starts_without_engines_and_heavy_modules(paceline, args, absent):
    done = paceline(*args, python=["-X", "importtime"])
    assert done.returncode == 0, done.stderr
    imported = _imported(done.stderr)
    assert "click" in imported
    assert imported & absent == set()


def _imported(stderr):
    """The top-level names of `python -X importtime`."""
    lines = [line.split("|")[-1].strip() for line in stderr.splitlines() if line.startswith("import time:")]
    return {name.partition(".")[0] for name in lines}


def test_the_facade_is_what_it_says():
    import paceline

    assert sorted(paceline.__all__) == list(paceline.__all__)
    assert all(hasattr(paceline, name) for name in paceline.__all__)
    assert Path(paceline.worker_root()).name == "_runtimes"
