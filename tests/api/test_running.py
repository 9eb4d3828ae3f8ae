"""`paceline ps`, `load` and `unload` beside a running server."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from paceline import LoadConfig, LoraAdapter
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


def test_every_way_to_load_has_a_flag(run, serving, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = (
        "--parallel=2 --queue=9 --prompt-cache-bytes=1000 --gpu-layers=-1 --main-gpu=0 --tensor-split=3,0.5 "
        "--no-offload-kv-cache --eval-batch-size=256 --flash-attention --cache-type-k=q8_0 --cache-type-v=q8_0 "
        "--threads=3 --no-mmap --mlock --context-length=1024 --lora=near.gguf --lora=/far=away.gguf --lora=/far=0.5"
    )
    run("load", "coder-7m", *flags.split())
    config, _, _ = serving.loads[-1]
    assert config == LoadConfig(
        context_length=1024,
        parallel=2,
        queue=9,
        prompt_cache_bytes=1000,
        threads=3,
        eval_batch_size=256,
        flash_attention=True,
        cache_type_k="q8_0",
        cache_type_v="q8_0",
        offload_kv_cache=False,
        gpu_layers=-1,
        main_gpu=0,
        tensor_split=(3.0, 0.5),
        mmap=False,
        mlock=True,
        lora=(
            LoraAdapter(tmp_path / "near.gguf"),
            LoraAdapter(Path("/far=away.gguf")),
            LoraAdapter(Path("/far"), 0.5),
        ),
    )
    assert set(config.given()) == {f.name for f in fields(LoadConfig)}


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--tensor-split", "0,0", "not all of them 0"),
        ("--tensor-split", "3,-1", "each from 0 on"),
        ("--tensor-split", "3,,1", "no list of numbers"),
        ("--tensor-split", "inf,1", "no list of numbers"),
        ("--lora", "", "no path"),
        ("--queue", "-1", "not in the range"),
        ("--main-gpu", "first", "not a valid integer"),
    ],
)
def test_flags_that_make_no_sense_are_named_and_nothing_is_asked(run, serving, flag, value, reason):
    with pytest.raises(click.BadParameter, match=reason) as caught:
        run("load", "coder-7m", flag, value)
    assert caught.value.param.opts == [flag]
    assert serving.loads == []


def test_an_adapter_belongs_to_a_model_and_is_no_default_of_a_server(run):
    with pytest.raises(click.NoSuchOption):
        run("serve", "--lora", "/adapter.gguf")


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
