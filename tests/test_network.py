"""The door out of the host: who may use it, and that `--offline` closes it for every command there is."""

from __future__ import annotations

import json
import ssl

import certifi
import click
import httpx
import pytest

from paceline import network
from paceline.cli import cli
from paceline.errors import OfflineError, UsageError

VARIABLES = ("PACELINE_OFFLINE", "SSL_CERT_FILE", "SSL_CERT_DIR", "PIP_CERT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("value", "offline"),
    [("1", True), ("true", True), ("yes", True), ("ON", True), ("?", True), ("", False), ("0", False), ("No", False)],
)
def test_what_the_variable_may_say(value, offline):
    assert network.is_offline({"PACELINE_OFFLINE": value}) is offline


def test_a_client_has_a_name_and_follows(file_server):
    file_server.files["/a"] = b"what was asked for", "text/plain"
    with network.client() as client:
        answer = client.get(f"{file_server.url}/a")
        assert answer.text == "what was asked for"
        assert answer.request.headers["User-Agent"].startswith("paceline/")
        assert client.timeout == httpx.Timeout(60.0, connect=20.0)
    with network.client(timeout=1.0, headers={"Accept": "text/html"}) as client:
        assert client.timeout == httpx.Timeout(1.0)
        assert client.headers["Accept"] == "text/html"
        assert client.headers["User-Agent"].startswith("paceline/")


def test_offline_nothing_is_sent_also_by_a_client_that_was_there_before(file_server, monkeypatch):
    with network.client() as client:
        monkeypatch.setenv("PACELINE_OFFLINE", "1")
        with pytest.raises(OfflineError, match=r"/a was not asked: Paceline is offline \(PACELINE_OFFLINE is set\)"):
            client.get(f"{file_server.url}/a?token=secret")
    assert file_server.asked == []


def test_offline_a_redirect_is_not_followed(monkeypatch):
    def answer(request):
        monkeypatch.setenv("PACELINE_OFFLINE", "1")
        return httpx.Response(302, headers={"Location": "https://elsewhere.test/b"})

    with (
        network.client(transport=httpx.MockTransport(answer)) as client,
        pytest.raises(OfflineError, match="elsewhere"),
    ):
        client.get("https://here.test/a")


class TestCertificates:
    def test_the_public_ones_and_the_systems(self):
        context = network._certificates({})
        public = ssl.create_default_context(cafile=certifi.where()).cert_store_stats()["x509_ca"]
        assert context.cert_store_stats()["x509_ca"] >= public > 0
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname

    @pytest.mark.parametrize("name", ["SSL_CERT_FILE", "PIP_CERT"])
    def test_those_named_alone(self, name, tmp_path):
        first = certifi.contents().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
        (tmp_path / "own.pem").write_text(first)
        context = network._certificates({name: str(tmp_path / "own.pem")})
        assert context.cert_store_stats()["x509_ca"] == 1

    def test_what_cannot_be_read_is_said(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
        with pytest.raises(UsageError, match=r"SSL_CERT_FILE names .*gone\.pem, which cannot be read: No such file"):
            network.client()
        (tmp_path / "gone.pem").write_text("no certificate")
        with pytest.raises(UsageError, match="SSL_CERT_FILE names"):
            network.client()


def test_a_proxy_that_is_none(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "gopher://here:70")
    with pytest.raises(UsageError, match=r"the proxy .* cannot be used"):
        network.client()


# --- every command, offline ------------------------------------------------------------------------------------------

ARGUMENTS = {
    ("runtime", "get"): ["tiny"],
    ("runtime", "update"): ["--check"],
    ("runtime", "repair"): [],
    ("registry", "build"): ["{registry}"],
    ("pairs",): [],
}
"""What a command is called with; the others get a word for every argument they need."""

ENDLESS = {("serve",)}
"""`serve` goes on until it is ended. What it asks for at its start is `runtime update`'s."""

AT_HOME = {("ps",), ("load",), ("unload",)}
"""They speak to the server of this machine, which answers offline, too."""

RUN = """
import json, os, sys
from paceline.errors import PacelineError

reached = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        reached.append(f"{event} {arguments[1:] if event != 'socket.getaddrinfo' else arguments}")
sys.addaudithook(watch)

import click
from paceline.cli import cli

os.chdir(sys.argv[2])
said = {}
for argv in json.loads(sys.argv[1]):
    try:
        said[" ".join(argv)] = cli.main([*OPTIONS, *argv], standalone_mode=False)
    except (PacelineError, click.ClickException, click.exceptions.Abort, SystemExit) as error:
        said[" ".join(argv)] = f"{type(error).__name__}: {error}"
print(json.dumps({"reached": reached, "said": said}))
"""


def commands(group, path=()):
    """Every command below a group, with its path."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def every_command(registry):
    for path, command in commands(cli):
        if path in ENDLESS | AT_HOME:
            continue
        needed = [p for p in command.params if p.required]
        words = [w for p in needed for w in ((p.opts[0], "x") if isinstance(p, click.Option) else ("x",))]
        yield [*path, *(a.format(registry=registry) for a in ARGUMENTS.get(path, words))]


@pytest.fixture
def world(tiny, file_server, tmp_path, monkeypatch):
    """One process that runs many commands, and a server that is its package index and its every proxy."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("UV_FIND_LINKS")
    registry = tmp_path / "registry.json"
    registry.write_text(
        '{"schema_version": 1, "releases": [{"engine": "e", "version": "1.0", "platform": "linux-x86_64-cpu",'
        ' "formats": ["gguf"], "requires": {"os": "linux", "arch": "x86_64", "min_glibc": "2.28", "python": ">=3.11"},'
        ' "recipe": {"roots": ["alpha"], "packages": []}}]}'
    )

    def run(options, argvs):
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"), file_server.url)
        variables = {**tiny.environment(), **proxies, "UV_DEFAULT_INDEX": file_server.index, "UV_HTTP_RETRIES": "0"}
        variables |= {"PIP_NO_INDEX": "0", "UV_FIND_LINKS": "", "NO_PROXY": ""}
        done = tiny.python("-c", f"OPTIONS = {options!r}\n{RUN}", json.dumps(argvs), str(tmp_path), **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    run.registry = registry
    return run


def test_offline_no_command_reaches_out(world, file_server):
    told = world(["--offline"], list(every_command(world.registry)))

    assert file_server.asked == []
    assert told["reached"] == []
    assert "network was disabled" in told["said"]["runtime get tiny"]
    assert "network was disabled" in told["said"][f"registry build {world.registry}"]


def test_offline_a_server_of_this_machine_is_asked_and_no_other(world, file_server):
    asking = [[*path, *(() if path == ("ps",) else ("x",))] for path in sorted(AT_HOME)]

    at_home = world(["--offline"], [[*argv, "--server", "http://127.0.0.1:1"] for argv in asking])
    elsewhere = world(["--offline"], [[*argv, "--server", "http://paceline.test:1"] for argv in asking])

    assert file_server.asked == []
    assert at_home["reached"]
    assert all("'127.0.0.1', 1" in address for address in at_home["reached"])
    assert elsewhere["reached"] == []
    assert [said.partition(":")[0] for said in elsewhere["said"].values()] == ["OfflineError"] * len(asking)


def test_online_the_same_commands_do(world, file_server):
    """So that the test above could fail: the door is watched where it is used."""
    world([], [["runtime", "get", "tiny"], ["registry", "build", str(world.registry)]])

    assert any("tinyengine" in path or "tinydep" in path for path in file_server.asked)
    assert any("alpha" in path for path in file_server.asked)
