"""Plugins as packages under the home, installed for real by the real command, and what must not go wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from importlib import metadata

import pytest

from paceline.errors import PluginError
from paceline.manager import plugin_trial
from paceline.plugin_folder import generation, packages, read_state
from paceline.store import Store

PLUGIN = """
from paceline import Engine, hookimpl
PACELINE_API = 1
class E(Engine):
    name = "{engine}"
    formats = ("{engine}",)
    def worker(self, runtime): ...
@hookimpl
def paceline_engines():
    return [E()]
"""


class World:
    """A home, a cache, a package index, and the `paceline` command that sees them."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        self.home = folder / "home"
        self.uploads: dict[str, dict[str, str]] = {}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PACELINE_", "UV_", "PIP_"))}
        self.env |= {
            "PACELINE_HOME": str(self.home),
            "PACELINE_CACHE": str(folder / "cache"),
            "UV_DEFAULT_INDEX": server.index,
            "UV_HTTP_RETRIES": "0",
            "COLUMNS": "200",
        }

    def wheel(self, name, source=None, version="1.0", *, needs=(), engines=None, files=None, plugin=True):
        """Write a wheel of a plugin, or of a plain package; returns its path."""
        module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
        content = {f"{module}.py": source if source is not None else PLUGIN.format(engine=name)} | (files or {})
        needed = "".join(f"Requires-Dist: {need}\n" for need in needs)
        content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}"
        content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        if plugin:
            claims = "".join(f"{engine} = {module}\n" for engine in engines or ())
            claimed = f"[paceline.engines]\n{claims}" if engines is not None else ""
            content[f"{info}/entry_points.txt"] = f"[paceline]\n{name} = {module}\n{claimed}"
        record = "".join(f"{path},{_digest(text)},{len(text.encode())}\n" for path, text in content.items())
        path = self.folder / "made" / f"{module}-{version}-py3-none-any.whl"
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for file, text in (content | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
                archive.writestr(file, text)
        return path

    def publish(self, *paths):
        for path in paths:
            project = path.name.split("-")[0].replace("_", "-")
            self.server.add_file(path.name, path.read_bytes())
            self.uploads.setdefault(project, {})[path.name] = "2030-01-01"
            self.server.publish(project, self.uploads[project])

    def run(self, *arguments, **variables):
        return subprocess.run(
            [sys.executable, "-m", "paceline", *map(str, arguments)],
            env=self.env | variables,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    def ok(self, *arguments, **variables):
        done = self.run("plugins", *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments, status=1, **variables):
        done = self.run("plugins", *arguments, **variables)
        assert done.returncode == status, (done.stdout, done.stderr)
        return done.stderr

    def listed(self):
        return {p["name"]: p for p in json.loads(self.ok("--json"))}

    def held(self):
        state = read_state(self.home)
        return {p.name: p.version for p in state.packages}

    @property
    def folder_in_force(self):
        return packages(generation(self.home, read_state(self.home).generation))

    def leftovers(self):
        return [p.name for p in (self.home / "plugins").glob("staging.*")]


def _digest(text):
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def world(tmp_path, file_server):
    return World(tmp_path, file_server)


def test_from_the_index_with_what_it_needs(world):
    world.publish(world.wheel("parrot", needs=["seeds>=1", "paceline>=0.1", "click"], engines=["parrot"]))
    world.publish(world.wheel("seeds", "KIND = 'sunflower'\n", plugin=False))

    shown = world.ok("install", "parrot", "--dry-run")
    assert "+ parrot 1.0, from index, " in shown
    assert "plugin parrot: parrot\n    engines it claims: parrot" in shown
    assert "+ seeds 1.0, needed by it, " in shown
    assert world.server.sha256("parrot-1.0-py3-none-any.whl") in shown
    assert not (world.home / "plugins.json").exists()
    assert "cancelled" in world.refused("install", "parrot", status=130)
    unasked = world.run("plugins", "install", "parrot", "--json")
    assert (unasked.returncode, json.loads(unasked.stdout)["added"][0]["engines"]) == (2, ["parrot"])
    assert "nothing was changed: with --json nobody is asked" in unasked.stderr
    assert "paceline plugins install --json -y" in unasked.stderr
    assert "[y/N]" not in unasked.stderr
    assert world.leftovers() == []
    assert world.listed().keys() == {"llama-cpp", "mlx"}

    assert "parrot is active: parrot" in world.ok("install", "parrot", "-y")
    found = world.listed()["parrot"]
    assert (found["state"], found["engines"], found["managed"], found["source"]) == (
        "active",
        ["parrot"],
        True,
        "index",
    )
    assert sorted(p.name for p in world.folder_in_force.glob("*.py")) == ["parrot.py", "seeds.py"]
    assert world.leftovers() == []
    asked = [path for path in world.server.asked if path.startswith("/simple/")]
    assert {path.split("/")[2] for path in asked} <= {"parrot", "seeds", "paceline", "click"}


def test_from_a_wheel_and_removed_without_a_network(world):
    world.publish(world.wheel("seeds", "KIND = 1\n", plugin=False))
    parrot, owl = world.wheel("parrot", needs=["seeds"]), world.wheel("owl", needs=["seeds"])
    crow = world.wheel("crow", version="2.0+home.made")
    world.ok("install", parrot, owl, crow, "-y")
    parrot.unlink()
    assert world.listed()["parrot"]["source"] == str(parrot)
    assert world.held() == {"crow": "2.0+home.made", "owl": "1.0", "parrot": "1.0", "seeds": "1.0"}

    world.server.close()
    assert "Removed parrot 1.0" in world.ok("remove", "parrot", "-y", PACELINE_OFFLINE="1")
    assert world.held() == {"crow": "2.0+home.made", "owl": "1.0", "seeds": "1.0"}
    assert world.listed()["owl"]["state"] == "active"
    assert "- seeds 1.0" in world.ok("remove", "owl", "crow", "-y")
    assert world.listed().keys() == {"llama-cpp", "mlx"}
    assert "no plugin 'owl' was installed by Paceline (installed: none)" in world.refused(
        "remove", "owl", "-y", status=3
    )


def test_from_a_folder(world, tmp_path):
    """Whose build backend is its own, because a test asks no index for one."""
    source = tmp_path / "source"
    source.mkdir()
    wheel = world.wheel("parrot")
    (source / "pyproject.toml").write_text(
        '[project]\nname = "parrot"\nversion = "1.0"\n'
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (source / "backend.py").write_text(
        "import shutil\n"
        "def build_wheel(folder, config_settings=None, metadata_directory=None):\n"
        f"    return shutil.copy({str(wheel)!r}, folder).split('/')[-1]\n"
    )
    world.ok("install", source, "-y")
    assert world.listed()["parrot"]["source"] == str(source)


def test_updates_and_what_stays(world):
    world.publish(world.wheel("parrot"), world.wheel("owl"))
    world.ok("install", "parrot", "owl", "-y")
    first = world.folder_in_force
    world.publish(world.wheel("parrot", version="1.1"), world.wheel("owl", version="1.1"), world.wheel("crow"))
    world.publish(world.wheel("owl", version="2.0", needs=["paceline>=99"]))

    world.ok("install", "crow", "-y")
    assert world.held() == {"crow": "1.0", "owl": "1.0", "parrot": "1.0"}
    assert "+ parrot 1.1 instead of 1.0, from index" in world.ok("update", "parrot", "-y")
    assert world.held() == {"crow": "1.0", "owl": "1.0", "parrot": "1.1"}
    world.ok("update", "-y")
    assert world.held() == {"crow": "1.0", "owl": "1.1", "parrot": "1.1"}
    assert "nothing changes" in world.ok("update", "--dry-run")
    assert not first.exists()
    assert [int(p.name) for p in sorted((world.home / "plugins").iterdir())] == [3, 4]


# --- the host unharmed ----------------------------------------------------------------------------------------------


class TestTheHostIsUnharmed:
    @pytest.fixture(autouse=True)
    def before(self, world):
        """Whatever is refused, what was there is there after."""
        world.publish(world.wheel("owl"))
        world.ok("install", "owl", "-y")
        yield
        assert world.held() == {"owl": "1.0"}
        found = world.listed()
        assert {name: p["state"] for name, p in found.items()} == dict.fromkeys(("llama-cpp", "mlx", "owl"), "active")
        assert world.leftovers() == []

    def test_by_other_versions_of_its_packages(self, world):
        world.publish(world.wheel("click", "old", version="1.0", plugin=False))
        said = world.refused("install", world.wheel("parrot", needs=["click<2"]), "-y")
        assert "cannot be installed beside this Paceline" in said
        assert f"click=={metadata.version('click')}" in said

    def test_by_another_paceline(self, world):
        world.publish(world.wheel("paceline", "", version="99.0", plugin=False))
        said = world.refused("install", world.wheel("parrot", needs=["paceline>=99"]), "-y")
        assert "cannot be installed beside this Paceline" in said
        assert "is of Paceline's own environment" in world.refused("install", "paceline==99.0", "-y", status=2)

    def test_by_a_module_of_its_names(self, world):
        for file, owner in {
            "paceline/__init__.py": "already here, from ",
            "click.py": "already here, from ",
            "json.py": "Python's own",
        }.items():
            said = world.refused("install", world.wheel("parrot", files={file: ""}), "-y")
            module = file.partition("/")[0].removesuffix(".py")
            assert f"parrot brings a module named {module}, which is {owner}" in said

    def test_by_a_file_that_runs_at_every_start(self, world):
        said = world.refused("install", world.wheel("parrot", files={"parrot.pth": "import parrot\n"}), "-y")
        assert "parrot.pth, code that would run at every start of Python" in said

    def test_by_one_that_does_not_load(self, world):
        for source, reason in {
            "raise RuntimeError('no wings')": "import of parrot failed: RuntimeError: no wings",
            "import os; os._exit(3)": "the process that loaded it ended with exit status 3",
            r"import os; os.write(2, b'a \xff'); os._exit(3)": "ended with exit status 3: a \N{REPLACEMENT CHARACTER}",
            "import os; os.kill(os.getpid(), 9)": "the process that loaded it ended with signal 9",
            "PACELINE_API = 77": "was built for plugin API 77",
            PLUGIN.format(engine="mlx"): "claims the engine name 'mlx', already taken by the plugin mlx",
            PLUGIN.format(engine="owl"): "claims the engine name 'owl', already taken by the plugin owl",
        }.items():
            said = world.refused("install", world.wheel("parrot", source), "-y")
            assert "nothing was changed: " in said
            assert reason in said

    def test_by_one_that_takes_the_engine_of_one_that_is_there(self, world):
        said = world.refused("install", world.wheel("crow", PLUGIN.format(engine="owl")), "-y")
        reason = "it claims the engine name 'owl', already taken by the plugin crow"
        assert f"nothing was changed: with crow 1.0, owl 1.0 does not load any more: {reason}" in said

    def test_by_one_that_never_ends_to_load(self, world, tmp_path, monkeypatch):
        monkeypatch.setattr(plugin_trial, "TIMEOUT_S", 3.0)
        with zipfile.ZipFile(world.wheel("parrot", "import time\ntime.sleep(600)")) as archive:
            archive.extractall(tmp_path / "site")
        with pytest.raises(PluginError, match="loading it was not done within 3 s"):
            plugin_trial.try_plugins(tmp_path / "site", ())

    def test_by_one_that_claims_something_else(self, world):
        said = world.refused("install", world.wheel("parrot", PLUGIN.format(engine="x"), engines=["parrot"]), "-y")
        assert "parrot 1.0 claims the engine parrot and brings the engine x" in said

    def test_by_what_is_no_plugin(self, world):
        world.publish(world.wheel("seeds", "", plugin=False))
        assert "seeds 1.0 is no plugin" in world.refused("install", "seeds", "-y")
        assert "'parrot @ https://elsewhere.test/x.whl' names an address" in world.refused(
            "install", "parrot @ https://elsewhere.test/x.whl", "-y", status=2
        )

    def test_by_a_wheel_that_leads_elsewhere(self, world):
        wheel = world.wheel("parrot", files={"../../parrot": ""})
        assert "leads elsewhere" in world.refused("install", wheel, "-y")

    def test_by_an_index_that_is_gone(self, world):
        world.server.close()
        assert "cannot be installed beside this Paceline" in world.refused("install", "parrot", "-y")

    def test_by_an_update_that_does_not_load(self, world):
        world.publish(world.wheel("owl", "raise RuntimeError('no wings')", version="1.1"))
        assert "no wings" in world.refused("update", "-y")

    def test_by_a_kill_at_any_moment(self, world):
        """Each process ends itself, with SIGKILL, at another of the steps that an installation takes."""
        wheel = world.wheel("parrot")
        steps = _steps(world, wheel, None)
        world.ok("remove", "parrot", "-y")
        for step in (0, steps // 3, *range(steps - 6, steps)):  # the last ones put it in force
            assert _steps(world, wheel, step) == -signal.SIGKILL
            held = world.held()
            assert held in ({"owl": "1.0"}, {"owl": "1.0", "parrot": "1.0"})
            assert {name: p["state"] for name, p in world.listed().items()} == dict.fromkeys(
                ("llama-cpp", "mlx", *held), "active"
            )
            if "parrot" in held:
                world.ok("remove", "parrot", "-y")
        world.ok("install", wheel, "-y")
        assert world.listed()["parrot"]["state"] == "active"
        world.ok("remove", "parrot", "-y")


KILL = """
import os, signal, sys
from pathlib import Path
from paceline import paths
from paceline.manager.plugin_packages import install
from paceline.store import Store, transaction

wanted, at = sys.argv[1], sys.argv[2]
count = 0
def observer(step, path):
    global count
    if at != "None" and count == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
with transaction.observed(observer):
    install([wanted], Store(paths.home()), cache=paths.cache(), confirm=lambda change: True)
print(count)
"""


def _steps(world, wheel, at):
    """How many steps an installation takes; or, killed at one of them, how the process ended."""
    argv = [sys.executable, "-c", KILL, str(wheel), str(at)]
    done = subprocess.run(argv, env=world.env, capture_output=True, text=True, timeout=120)
    return int(done.stdout) if at is None else done.returncode


# --- at every start -------------------------------------------------------------------------------------------------


class TestProgress:
    def test_is_told_line_by_line(self, world):
        world.publish(world.wheel("parrot", needs=["feather"]), world.wheel("feather", "", plugin=False))
        said = world.run("plugins", "install", "parrot", "-y").stderr.splitlines()
        assert said == [
            "searching: finding what fits beside this Paceline",
            "packages",
            "checking: loading the plugins once",
            "finishing",
        ]
        assert world.run("plugins", "update", "-y").stderr.splitlines() == said
        assert world.run("plugins", "remove", "parrot", "-y").stderr.splitlines() == ["finishing"]

    def test_json_on_standard_output_is_json(self, world):
        assert json.loads(world.ok("install", world.wheel("parrot"), "-y", "--json"))

    @pytest.mark.skipif(sys.platform == "win32", reason="no terminals to open there")
    def test_a_bar_makes_room_for_what_is_asked(self, world):
        import pty

        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "paceline", "plugins", "install", world.wheel("parrot")]
        env = world.env | {"TERM": "xterm"}
        with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            before = _read_until(ours, b"Install? [y/N]: ")
            os.write(ours, b"y\n")
            after = _read_until(ours, b"parrot is active: parrot")
            process.wait(60)
        os.close(ours)
        assert process.returncode == 0
        assert b"searching: finding what fits" in before
        shown = before[before.index(b"+ parrot 1.0") :]
        assert b"\x1b" not in shown  # no bar is drawn into what is shown and asked
        assert b"checking: loading the plugins once" in after

    @pytest.mark.skipif(sys.platform == "win32", reason="no such signal there")
    @pytest.mark.parametrize("command", ["install", "update"])
    def test_ctrl_c_leaves_the_old_set_in_place(self, world, command):
        world.publish(world.wheel("parrot"))
        world.ok("install", "parrot", "-y")
        new = {"install": world.wheel("owl"), "update": world.wheel("parrot", version="2.0")}[command]
        world.publish(new)
        world.server.faulty = f"/files/{new.name}"
        world.server.misbehave_always(stall=10)
        world.server.asked.clear()
        arguments = [sys.executable, "-m", "paceline", "plugins", command, *(["owl"] if command == "install" else [])]
        with subprocess.Popen([*arguments, "-y"], env=world.env, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr.readline().startswith("searching")
            while f"/files/{new.name}" not in world.server.asked and process.poll() is None:
                time.sleep(0.01)  # the wheel stops on its way, and uv waits for the rest
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            process.wait(60)

        assert (process.returncode, said.strip()) == (130, "cancelled")
        assert world.held() == {"parrot": "1.0"}
        assert world.leftovers() == []
        assert world.listed()["parrot"]["version"] == "1.0"
        world.server.misbehave_always()
        world.ok(command, *(["owl"] if command == "install" else []), "-y")
        assert world.held() == ({"parrot": "1.0", "owl": "1.0"} if command == "install" else {"parrot": "2.0"})


def _read_until(terminal, text):
    """What a terminal shows up to and with `text`."""
    said = b""
    while text not in said:
        said += os.read(terminal, 4096)
    return said


class TestAGenerationInUse:
    """A process with a plugin loaded imports more of it after any number of changes."""

    @pytest.fixture
    def numbers(self, world):
        return lambda: sorted(int(f.name) for f in (world.home / "plugins").iterdir() if f.name.isdecimal())

    @pytest.fixture
    def server(self, world):
        """A function: start what opens the host as `paceline serve` does; it imports a module when told to."""
        running = []

        def start():
            process = subprocess.Popen(
                [sys.executable, "-c", _LATE], env=world.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            running.append(process)
            assert process.stdout.readline() == "loaded ['parrot']\n"
            return process

        yield start
        for process in running:
            process.kill()
            process.communicate()

    def change(self, world, times):
        for _ in range(times):
            world.ok("install", world.wheel("owl"), "-y")
            world.ok("remove", "owl", "-y")

    @pytest.fixture
    def installed(self, world):
        world.ok("install", world.wheel("parrot", files={"parrot_late.py": "SAID = 'late'\n"}), "-y")

    def test_stays_and_goes_when_no_process_uses_it(self, world, numbers, server, installed):
        process = server()
        assert Store(world.home).plugins_in_use_by(1) == (process.pid,)
        self.change(world, 2)
        assert numbers() == [1, 4, 5]

        out, _ = process.communicate("go\n")

        assert out == "late\n"
        assert process.returncode == 0
        world.ok("install", world.wheel("owl"), "-y")
        assert numbers() == [5, 6]
        assert not (world.home / "uses" / "plugins.1").exists()

    def test_goes_after_the_process_was_killed(self, world, numbers, server, installed):
        process = server()
        self.change(world, 1)
        process.kill()
        process.wait()
        assert numbers() == [1, 2, 3]

        would = json.loads(world.run("runtime", "prune", "--dry-run", "--json").stdout)
        assert would["leftovers"] == [str(world.home / "plugins" / "1")]
        assert numbers() == [1, 2, 3]
        done = json.loads(world.run("runtime", "prune", "--json").stdout)
        assert done["leftovers"] == would["leftovers"]
        assert numbers() == [2, 3]

    def test_is_not_pruned_while_it_is_used(self, world, numbers, server, installed):
        server()
        self.change(world, 1)
        assert json.loads(world.run("runtime", "prune", "--json").stdout)["leftovers"] == []
        assert numbers() == [1, 2, 3]

    @pytest.mark.parametrize(
        "command",
        ["bundle create x -o x.bundle", "runtime hold x@1", "runtime survey", "doctor"],
    )
    def test_is_held_by_whatever_command_runs_its_code(self, world, tmp_path, command):
        """Listing its releases waits here until the test has looked."""
        world.ok("install", world.wheel("parrot", _WAITS), "-y")
        gate = tmp_path / "gate"
        gate.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "paceline", *command.split()],
            env=world.env | {"GATE": str(gate)},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not (gate / "reached").exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert Store(world.home).plugins_in_use_by(1) == (process.pid,)
        (gate / "go").touch()
        process.wait(60)
        assert Store(world.home).plugins_in_use_by(1) == ()

    def test_is_not_noted_where_no_plugin_is_of_the_home(self, world):
        assert world.run("runtime", "update", "--check", "--registry-only").returncode == 0
        assert not (world.home / "uses").exists()


_WAITS = (
    PLUGIN.format(engine="parrot").replace("def worker", "def releases(self): return wait()\n    def worker")
    + """
import itertools, os, time
from pathlib import Path
calls = itertools.count()
def wait():
    if next(calls) and (gate := os.environ.get("GATE")):  # the first one is while it is loaded
        Path(gate, "reached").touch()
        while not Path(gate, "go").exists():
            time.sleep(0.01)
    return []
"""
)
_LATE = """
import sys
from paceline.host import open_host
host = open_host()
print("loaded", [p.name for p in host.plugins.plugins if p.managed], flush=True)
sys.stdin.readline()
import parrot_late
print(parrot_late.SAID)
"""


class TestAtEveryStart:
    def test_one_in_the_environment_comes_first(self, world, tmp_path):
        world.ok("install", world.wheel("parrot"), "-y")
        site = tmp_path / "site"
        with zipfile.ZipFile(world.wheel("parrot", PLUGIN.format(engine="elder"), version="0.5")) as archive:
            archive.extractall(site)
        world.env["PYTHONPATH"] = str(site)
        found = world.listed()["parrot"]
        assert (found["engines"], found["version"], found["source"]) == (["elder"], "0.5", "environment")

    def test_another_python_is_said(self, world):
        world.publish(world.wheel("parrot"))
        world.ok("install", "parrot", "-y")
        file = world.home / "plugins.json"
        file.write_text(
            file.read_text().replace(f'"python": "{sys.version_info[0]}.{sys.version_info[1]}"', '"python": "2.7"')
        )
        found = world.listed()["parrot"]
        assert (found["state"], found["managed"]) == ("broken", True)
        assert "was installed for Python 2.7" in found["error"]
        world.ok("update", "-y")
        assert world.listed()["parrot"]["state"] == "active"

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"schema_version": 9}', '{"schema_version": 1, "generation": "x"}']
    )
    def test_a_damaged_state_leaves_out_what_it_lists_and_nothing_else(self, world, text):
        world.home.mkdir()
        (world.home / "plugins.json").write_text(text)
        found = world.listed()
        assert found["llama-cpp"]["state"] == "active"
        (broken,) = [p for p in found.values() if p["state"] == "broken"]
        assert "plugins.json cannot be read" in broken["error"]

    def test_none_is_asked_for(self, world):
        world.ok("install", world.wheel("parrot"), "-y")
        assert json.loads(world.ok("--json", PACELINE_PLUGINS="mlx"))[-1]["state"] == "disabled"
