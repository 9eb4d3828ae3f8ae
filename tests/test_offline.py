"""`--offline` closes the door for every command there is, for `serve`, and for whatever process they start."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import click
import httpx
import pytest

from paceline.cli import cli
from paceline.registry import publishing, registry_text, signing
from paceline.store import Store
from paceline.types import Package, Recipe, Requirements

HERE = Path(__file__).parent

WATCH = """
import os, sys

def note(line):
    handle = os.open({file!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (line + chr(10)).encode())
    os.close(handle)

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        address = arguments[:2] if event == "socket.getaddrinfo" else arguments[-1]
        note("reached " + event + " " + repr(address))

sys.addaudithook(watch)
note("watched " + " ".join(sys.orig_argv))
"""
"""What every Python runs when it starts, where it finds this as `sitecustomize`."""

RUN = """
import json, os, sys, urllib.parse, urllib.request
from contextlib import suppress
from paceline.errors import PacelineError

import click
from paceline.cli import cli

options, argvs, folder, mark = json.loads(sys.argv[1])
os.chdir(folder)
said = {}
for path, argv in argvs:
    if mark:
        os.environ["PACELINE_CACHE"] = os.path.join(folder, "cache for " + path)
        with suppress(OSError):  # there is nothing, but it was asked for
            urllib.request.urlopen(mark + urllib.parse.quote(path))
    try:
        said[path] = str(cli.main([*options, *argv], standalone_mode=False) or "done")
    except (PacelineError, click.ClickException, click.exceptions.Abort, SystemExit) as error:
        said[path] = f"{type(error).__name__}: {error}"
print()
print(json.dumps(said))
"""

SERVERS = {("serve",), ("registry", "serve")}
"""They go on until they are ended."""

SERVE = ("serve", "--port", "0", "--update-delay", "0", "--update")

AT_HOME = {("ps",), ("load",), ("unload",)}
"""They speak to the server of this machine, which answers offline, too."""

ASKING = {
    "runtime get": "network was disabled",
    "runtime repair": "^SystemExit: 1$",  # what it could not fetch is said, and stops no other repair
    "runtime update": "^1$",  # likewise
    "bundle create": "OfflineError",
    "registry build": "network was disabled",
    "registry refresh": "^75$",
    "registry trust": "^done$",
    "plugins install": "network was disabled",
    "plugins update": "network was disabled",
    "doctor": "^SystemExit: 1$",
}
"""The commands that ask somebody when they are online, and what comes of them offline, as a regular expression."""


def commands(group, path=()):
    """Every command below a group, with its path."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


class World:
    """A home and a server that is its package index, a signed registry, and its every proxy."""

    def __init__(self, tiny, server, folder):
        self.tiny, self.server, self.folder = tiny, server, folder
        self.reached_file = folder / "reached"
        self.store = Store(tiny.home)
        self._environment = self._variables()

    def furnish(self):
        """Give every command something to do, and have nothing in the cache that could be fetched."""
        self._publish()
        self._install()
        shutil.copytree(self.tiny.home, self.folder / "furnished", symlinks=True)
        return self

    def restore(self):
        """Undo what was done since."""
        for left in (self.tiny.home, self.folder / "cache", self.folder / "new-keys"):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(self.folder / "furnished", self.tiny.home, symlinks=True)
        self.server.asked.clear()
        self.reached_file.unlink(missing_ok=True)

    def command_lines(self):
        """The arguments of every command but servers and those for them, by its path."""
        local = {
            "demo": ["--model", "birds/parrot", "--draft", "birds/chick", "--runs", "1", "--max-tokens", "4"],
            "tokens create": ["somebody"],
            "tokens ls": [],
            "tokens revoke": ["somebody"],
            "ls": [],
            "pairs": ["birds/parrot"],
            "estimate": ["birds/parrot"],
            "runtime get": ["tiny@0.8"],
            "runtime hold": ["tiny@0.8"],
            "runtime link": ["mine", "environment", "--engine", "tiny"],
            "runtime ls": [],
            "runtime pin": ["tiny@0.9"],
            "runtime prune": ["--keep", "5", "--cache"],
            "runtime remove": ["tiny-mine"],
            "runtime repair": ["tiny@0.9"],
            "runtime rollback": ["tiny"],
            "runtime select": ["tiny@1.0"],
            "runtime survey": ["--refresh"],
            "runtime unhold": ["tiny-any-cpu@0.8"],
            "runtime unpin": ["tiny-any-cpu@0.9"],
            "runtime unselect": ["echo"],
            "runtime update": [],
            "runtime verify": ["tiny@1.0"],
            "bundle create": ["tiny@0.8", "-o", "new.bundle"],
            "bundle install": ["made.bundle"],
            "bundle ls": ["made.bundle"],
            "registry build": ["registry.json"],
            "registry keys new": ["new-keys"],
            "registry keys rotate": ["timestamp", "--keys", "keys", "--site", "site"],
            "registry ls": [],
            "registry refresh": [],
            "registry remove": ["acme"],
            "registry renew": ["site", "--keys", "keys"],
            "registry sign": ["registry.json", "--keys", "keys", "--site", "site"],
            "registry trust": [f"{self.server.url}/registry", "--root", "root.json", "--name", "acme"],
            "registry verify": ["registry.json"],
            "plugins install": ["-y", "owl"],
            "plugins ls": [],
            "plugins remove": ["-y", "bird"],
            "plugins update": ["-y"],
            "doctor": [],
        }
        # What takes something away comes after those that need it.
        order = sorted(local, key=lambda path: (path.endswith(("remove", "revoke")), path == "registry trust"))
        return [(path, [*path.split(), *local[path]]) for path in order]

    def run(self, options, argvs, *, alone=False, mark=None, **variables):
        """Run command lines in one process; what came of each, by its path.

        `mark`: an address below which each path is asked for before its command, which then has a cache of its own.
        """
        code = ["-c", RUN, json.dumps([options, argvs, str(self.folder), mark])]
        done, addressed = self._python(code, alone, variables)
        said = json.loads(done.splitlines()[-1])
        return (said, addressed) if alone else said

    def serve(self, *argv, alone=False, **variables):
        """Have a server answer once and end; what `one_answer.py` tells."""
        done, addressed = self._python([str(HERE / "one_answer.py"), "birds/parrot", *argv], alone, variables)
        told = json.loads(done)
        return (told, addressed) if alone else told

    @contextmanager
    def begun(self, command):
        """A process that runs until the block is left."""
        process = subprocess.Popen(
            command, env=self._environment, cwd=self.folder, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        try:
            with process:
                yield process
                process.terminate()
        finally:
            process.kill()

    def watched(self):
        """The command lines of the Pythons that were watched, and whom they reached, or wanted to."""
        lines = self.reached_file.read_text().splitlines()
        return [[line.partition(" ")[2] for line in lines if line.startswith(kind)] for kind in ("watched", "reached")]

    def watch(self, environment):
        """Have a Python that heeds no variables be watched, too: the one of this virtual environment."""
        for packages in environment.glob("lib/python*/site-packages"):
            shutil.copy(self.folder / "watch" / "sitecustomize.py", packages)

    def _python(self, argv, alone, variables):
        environment = self._environment | variables
        command = [sys.executable, *argv]
        if alone:
            command = ["unshare", "-rn", sys.executable, str(HERE / "every_packet.py"), *command]
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if not alone:
            return done.stdout, None
        seen = json.loads(done.stdout.splitlines()[-1])
        assert seen["status"] == 0, done.stderr
        return seen["out"], seen["addressed"]

    def _variables(self):
        echo = self.folder / "echo" / "paceline_echo-1.0.dist-info"
        echo.mkdir(parents=True)
        (echo / "METADATA").write_text("Metadata-Version: 2.1\nName: paceline-echo\nVersion: 1.0\n")
        (echo / "entry_points.txt").write_text("[paceline]\necho = paceline_echo\n")
        watch = self.folder / "watch"
        watch.mkdir()
        (watch / "sitecustomize.py").write_text(WATCH.format(file=str(self.reached_file)))
        plugin = self.tiny.environment()["PYTHONPATH"]
        path = [watch, plugin, echo.parent, HERE / "thirdparty" / "paceline-echo" / "src"]
        models = self.folder / "models"
        for name, parameters in (("parrot", 2000), ("chick", 1000)):
            file = models / "birds" / name / f"{name}.echo"
            file.parent.mkdir(parents=True)
            vocabulary = ["To", " be", " or", " not"]
            file.write_text(json.dumps({"name": name, "parameters": parameters, "vocabulary": vocabulary}))
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"), self.server.url)
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("PACELINE_", "UV_", "PIP_"))}
        return {
            **{k: v for k, v in ours.items() if k.upper() not in ("NO_PROXY", *proxies)},
            **proxies,
            "PACELINE_HOME": str(self.tiny.home),
            "PACELINE_CACHE": str(self.folder / "cache"),
            "PACELINE_MODELS": str(models),
            "PACELINE_PLUGINS": "tiny,echo,bird,owl",
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "UV_DEFAULT_INDEX": self.server.index,
            "UV_HTTP_RETRIES": "0",
        }

    def _release(self, version):
        """A release of one wheel, as the index has it."""
        package = Package("tinyengine", version, (self.server.sha256(f"tinyengine-{version}-py3-none-any.whl"),))
        arch = {"aarch64": "arm64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
        requires = Requirements(os="linux", arch=arch, min_glibc="2.28", python=">=3.11")
        recipe = Recipe((package,), roots=(f"tinyengine=={version}",))
        return replace(self.tiny.release(version), recipe=recipe, requires=requires)

    def _publish(self):
        """The index has what the releases are made of, one version more, and a plugin; a registry has another."""
        days = {}
        for version in ("0.8", "0.9", "1.0", "1.1", "1.2"):
            name = f"tinyengine-{version}-py3-none-any.whl"
            files = {"tinyengine/__main__.py": self.tiny.worker, "tinyengine/settings.json": "{}"}
            self._add(name, "tinyengine", files, version)
            days[name] = "2030-01-01"
        self.server.publish("tinyengine", days)
        for project, versions in {"bird": ("1.0", "1.1"), "owl": ("1.0",)}.items():
            module = "from paceline import hookimpl\nPACELINE_API = 1\n"
            for version in versions:
                files = {
                    f"{project}.py": module,
                    f"{project}-{version}.dist-info/entry_points.txt": f"[paceline]\n{project} = {project}\n",
                }
                self._add(f"{project}-{version}-py3-none-any.whl", project, files, version)
        self.server.publish("owl", {"owl-1.0-py3-none-any.whl": "2030-01-01"})
        self.server.publish("bird", {"bird-1.0-py3-none-any.whl": "2030-01-01"})
        (self.folder / "registry.json").write_text(registry_text([self._release("1.2")]))
        keys, site = self.folder / "keys", self.folder / "site"
        signing.new_keys(keys, publishing.ROLES)
        publishing.publish(self.folder / "registry.json", keys, site)
        for file in site.rglob("*.json"):
            path = f"/registry/{file.relative_to(site).as_posix()}"
            self.server.files[path] = file.read_bytes(), "application/json"
        shutil.copy(site / "metadata" / "root.json", self.folder / "root.json")

    def _add(self, name, project, files, version):
        self.tiny.write_wheel(self.folder / name, project, files, version)
        self.server.add_file(name, (self.folder / name).read_bytes())

    def _install(self):
        """Three runtimes, one of them damaged, a plugin, a trusted registry and a bundle; then the cache is emptied."""
        self.tiny.offer(*map(self._release, ("0.8", "0.9", "1.0")))
        trust = ["registry", "trust", f"{self.server.url}/registry", "--root", "root.json", "--name", "acme"]
        said = self.run(
            [],
            [
                ("old", ["runtime", "get", "tiny@0.9"]),
                ("new", ["runtime", "get", "tiny@1.0"]),
                ("echo", ["runtime", "get", "echo"]),
                ("plugin", ["plugins", "install", "-y", "bird"]),
                ("bundle", ["bundle", "create", "tiny@1.0", "-o", "made.bundle"]),
                ("trust", trust),
            ],
            NO_PROXY="127.0.0.1",
        )
        assert set(said.values()) == {"done"}, said
        old, new = self.store.get("tiny@0.9"), self.store.get("tiny@1.0")
        for runtime in (old, new):
            self.store.select(runtime)
            self.store.note_loaded(runtime, "tiny")
        shutil.copytree(new.directory / "env", self.folder / "environment", symlinks=True)
        (old.directory / "requirements.txt").write_text("damaged")
        self.server.publish("bird", {f"bird-{v}-py3-none-any.whl": "2030-01-01" for v in ("1.0", "1.1")})
        shutil.rmtree(self.folder / "cache")


@pytest.fixture(scope="module")
def world(tiny_engine, new_file_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("offline")
    server = new_file_server()
    yield World(tiny_engine.TinyWorld(folder / "tiny"), server, folder).furnish()
    server.close()


@pytest.fixture
def furnished(world):
    """The world as it was furnished, whatever was done in it before."""
    world.restore()
    return world


@pytest.fixture
def file_server(world):
    return world.server


@pytest.fixture
def alone():
    """Skips where a test cannot have a network of its own."""
    with suppress(OSError):
        if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0:
            return
    pytest.skip("this system gives its users no network of their own (`unshare -rn`)")


def assert_as_far_as_the_network(said):
    otherwise = {path: outcome for path, outcome in said.items() if not re.search(ASKING.get(path, "^done$"), outcome)}
    assert otherwise == {}


def test_offline_no_command_reaches_out(furnished, file_server):
    lines = furnished.command_lines()
    assert {path for path, _ in lines} == {" ".join(path) for path, _ in commands(cli) if path not in SERVERS | AT_HOME}

    said = furnished.run(["--offline"], lines)

    assert_as_far_as_the_network(said)
    assert file_server.asked == []
    assert furnished.watched()[1] == []


def test_offline_no_process_of_any_command_sends_a_packet(furnished, alone):
    said, addressed = furnished.run(["--offline"], furnished.command_lines(), alone=True)

    assert_as_far_as_the_network(said)
    assert addressed == []


def test_online_the_same_commands_ask(furnished, file_server):
    """So that the tests above could fail: each gets as far as the network."""
    lines = [(path, argv) for path, argv in furnished.command_lines() if path in ASKING]

    def run(*paths):
        chosen = [line for line in lines if line[0] in paths]
        return furnished.run([], chosen, mark=f"{file_server.url}/now/", NO_PROXY="127.0.0.1")

    # Plugins stay loaded, so that a process can only change them once.
    said = run("plugins update") | run(*ASKING.keys() - {"plugins update"})

    asked: dict[str, list[str]] = {}
    for path in file_server.asked:
        if path.startswith("/now/"):
            asked[unquote(path.removeprefix("/now/"))] = []
        else:
            asked[list(asked)[-1]].append(path)
    assert [path for path, asked_then in asked.items() if not asked_then] == [], said
    assert asked.keys() == ASKING.keys()


def test_online_the_packets_of_all_processes_are_seen(furnished, alone):
    lines = [(path, argv) for path, argv in furnished.command_lines() if path in ("runtime get", "registry refresh")]
    port = furnished.server.url.rpartition(":")[2]
    for line in lines:  # uv's are another program's
        assert furnished.run([], [line], alone=True)[1] == [f"tcp 127.0.0.1:{port}"]


def test_offline_a_server_of_this_machine_is_asked_and_no_other(furnished, file_server):
    asking = [(path[0], [*path, *(() if path == ("ps",) else ("x",))]) for path in sorted(AT_HOME)]

    def run(server):
        furnished.reached_file.unlink(missing_ok=True)
        said = furnished.run(["--offline"], [(path, [*argv, "--server", server]) for path, argv in asking])
        return said, furnished.watched()[1]

    _, at_home = run("http://127.0.0.1:1")
    said, elsewhere = run("http://paceline.test:1")

    assert file_server.asked == []
    assert at_home
    assert all("'127.0.0.1', 1" in address for address in at_home)
    assert elsewhere == []
    assert [outcome.partition(":")[0] for outcome in said.values()] == ["OfflineError"] * len(asking)


def assert_answered(told, file_server):
    assert told["answer"]["choices"][0]["message"]["content"] == "To be or not"
    assert told["answer"]["usage"]["completion_tokens"] == 4
    update = told["update"]
    if update["mode"] == "before":
        said = told["said"]
    else:
        problems = update["operation"]["result"]["problems"]
        assert [problem["source"] for problem in problems] == ["the registry acme", "the package index"]
        said = " ".join(problem["message"] for problem in problems)
    assert "Paceline is offline: the package index was not asked" in said
    assert f"{file_server.url}/registry/metadata/2.root.json was not asked: Paceline is offline" in said


@pytest.mark.parametrize("mode", ["apply", "before"])
def test_offline_a_server_answers_and_asks_nobody(furnished, file_server, mode):
    furnished.watch(furnished.store.get("echo").directory / "env")

    told = furnished.serve("--offline", *SERVE, mode)

    assert_answered(told, file_server)
    assert file_server.asked == []
    watched, reached = furnished.watched()
    for process in ("-m paceline --offline serve", "paceline_echo_worker", *(["manager.errand"] * (mode == "apply"))):
        assert any(process in argv for argv in watched), watched
    at_home = f"('127.0.0.1', {told['port']})"  # the client's, who is watched, too
    assert [address for address in reached if not address.endswith(at_home)] == []


@pytest.mark.parametrize("mode", ["apply", "before"])
def test_offline_no_process_of_a_server_sends_a_packet(furnished, file_server, alone, mode):
    told, addressed = furnished.serve("--offline", *SERVE, mode, alone=True)

    assert_answered(told, file_server)
    assert addressed == [f"tcp 127.0.0.1:{told['port']}"]  # the client's


def test_online_a_server_asks_for_its_update(furnished, file_server):
    furnished.serve(*SERVE, "apply", NO_PROXY="127.0.0.1")

    assert "/registry/metadata/timestamp.json" in file_server.asked
    assert any(path.startswith("/simple/tinyengine") for path in file_server.asked)
    assert furnished.store.selected("tiny").id == "tiny-any-cpu@1.2"


def test_a_registry_is_served_offline(furnished, file_server):
    command = [sys.executable, "-m", "paceline", "--offline", "registry", "serve", "site", "--keys", "keys"]
    with furnished.begun([*command, "--port", "0"]) as server:
        url = server.stdout.readline().split()[-1]
        with httpx.Client(trust_env=False) as http:
            assert http.get(f"{url}/metadata/1.root.json").status_code == 200
    assert file_server.asked == []
    assert furnished.watched()[1] == []
