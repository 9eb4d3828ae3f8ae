"""`paceline ps`, `load` and `unload` beside a running server."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from paceline.cli import cli
from paceline.errors import NotFoundError, OfflineError, PacelineError, UsageError


@pytest.fixture
def run(client, base_url, monkeypatch):
    """Run a command beside the server, behind a proxy that nothing may ask; returns what it printed."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    def command(*arguments, server=base_url):
        monkeypatch.setenv("PACELINE_SERVER", server)
        return CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False).output

    return command


def test_load_list_and_unload(run, serving):
    assert run("load", "coder-7m", "--ttl", "60", "--context-length", "512").startswith("coder-7m is loaded, after ")
    (entry,) = json.loads(run("ps", "--json"))
    assert (entry["model"], entry["running"]) == ("coder-7m", 0)
    assert run("ps").splitlines()[1].split()[0] == "coder-7m"
    assert json.loads(run("load", "family/plain", "--json"))["instance_id"] == "family/plain"
    assert run("unload", "plain") == "family/plain is unloaded\n"
    assert json.loads(run("unload", "--all", "--json")) == {"unloaded": ["coder-7m"]}
    assert not serving.kept
    assert run("unload", "--all") == "no model is loaded\n"
    assert run("ps").startswith("no model is loaded")


def test_the_options_of_loading_arrive(run, serving):
    run("load", "coder-7m", "--ttl", "60", "-c", "512", "--no-flash-attention", "--force")
    config, ttl_s, force = serving.loads[-1]
    assert (config.context_length, config.flash_attention, config.parallel) == (512, False, None)
    assert (ttl_s, force) == (60, True)


def test_this_machine_is_asked_offline_and_no_other(run, monkeypatch):
    monkeypatch.setenv("PACELINE_OFFLINE", "1")
    assert json.loads(run("ps", "--json")) == []
    with pytest.raises(OfflineError):
        run("ps", server="http://paceline.example")


def test_what_goes_wrong_is_told(run, base_url):
    with pytest.raises(NotFoundError, match="no model is called 'nix'") as unknown:
        run("load", "nix")
    assert unknown.value.help == "did you mean coder-7m?"
    with pytest.raises(NotFoundError, match="coder-3m is not loaded"):
        run("unload", "coder-3m")
    with pytest.raises(UsageError):
        run("unload")
    with pytest.raises(PacelineError, match=r"no server answers at http://127\.0\.0\.1:9") as absent:
        run("ps", server="http://127.0.0.1:9")
    assert "paceline serve" in absent.value.help
    with pytest.raises(PacelineError, match="no server answers at nothing"):
        run("ps", server="nothing")


def test_what_is_no_paceline(run, file_server):
    with pytest.raises(PacelineError, match="is no Paceline server"):
        run("ps", server=file_server.url)
