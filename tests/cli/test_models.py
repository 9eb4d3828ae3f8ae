from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from paceline.cli import cli
from paceline.errors import NotFoundError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs `paceline` with an empty home and the samples of the package."""
    for name in ("HOME", "CACHE"):
        monkeypatch.setenv(f"PACELINE_{name}", str(tmp_path / name))
    for name in ("MODELS", "EXTRA_MODELS", "PLUGINS"):
        monkeypatch.delenv(f"PACELINE_{name}", raising=False)
    return lambda *arguments: CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_ls_shows_the_samples_and_where_it_looks(run, tmp_path):
    result = run("ls")
    assert result.exit_code == 0
    table, folders = result.stdout.split("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == [
        "MODEL",
        "paceline-coder-3m",
        "paceline-coder-3m-mlx",
        "paceline-coder-7m",
    ]
    assert str(tmp_path / "HOME/models") in folders


def test_ls_as_json_has_the_facts(run):
    models = json.loads(run("ls", "--json").stdout)
    assert {m["id"]: (m["publisher"], m["quantization"], m["max_context_length"]) for m in models} == {
        "paceline-coder-3m": ("paceline", "Q8_0", 2048),
        "paceline-coder-3m-mlx": ("paceline", "8bit", 2048),
        "paceline-coder-7m": ("paceline", "Q8_0", 2048),
    }
    assert "pairing" not in models[0]


def test_ls_tells_what_it_does_not_list_and_why(run, tmp_path):
    (tmp_path / "HOME/models").mkdir(parents=True)
    (tmp_path / "HOME/models/broken.gguf").write_bytes(b"GGUF")
    result = run("ls")
    assert result.exit_code == 0
    assert "broken.gguf ends inside a number (at byte 4)" in result.stderr


def test_what_files_say_cannot_steer_the_terminal(run, tmp_path, write_gguf):
    folder = tmp_path / "HOME/models"
    write_gguf(folder / "a\x1b[31m.gguf", {"general.architecture": "ev\x1bil"}, [("t", (32,), 0)])
    (folder / os.fsdecode(b"b\xff\x1b.gguf")).write_bytes(b"")
    result = run("ls")
    assert "\x1b" not in result.stdout + result.stderr
    assert "ev?il" in result.stdout
    assert "b\ufffd?.gguf" in result.stderr


def test_pairs_shows_what_fits(run):
    result = run("pairs")
    assert result.stdout.splitlines()[1].split()[:3] == ["paceline-coder-7m", "paceline-coder-3m", "compatible"]
    assert len(result.stdout.splitlines()) == 2


def test_pairs_of_a_model_says_why_not(run):
    mlx, larger = run("pairs", "paceline-coder-3m").stdout.splitlines()[1:]
    assert "differentFormat" in mlx
    assert "draftNotSmaller" in larger


def test_pairs_as_json_with_all(run):
    pairs = json.loads(run("pairs", "--all", "--json", "--rules", "2025-02").stdout)
    verdicts = {(p["main"], p["draft"]): p["verdict"]["status"] for p in pairs}
    assert {pair: status for pair, status in verdicts.items() if "paceline-coder-3m-mlx" not in pair} == {
        ("paceline-coder-7m", "paceline-coder-3m"): "compatible",
        ("paceline-coder-3m", "paceline-coder-7m"): "draftNotSmaller",
    }
    assert len(verdicts) == 6


def test_pairs_of_an_unknown_model(run):
    with pytest.raises(NotFoundError, match="nothing"):
        run("pairs", "nothing")
