"""The import contracts of pyproject.toml hold, and bite."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "plugins", "runtimes")


@pytest.fixture
def lint(tmp_path):
    """`lint-imports` on a copy of the sources, in which files can be changed."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("samples", "__pycache__", "_runtimes", "registry.json")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)

    def lint() -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(str(tmp_path / folder) for folder in FOLDERS)
        return subprocess.run(
            [Path(sys.executable).parent / "lint-imports", "--no-cache"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        )  # fmt: skip

    return lint


def test_the_contracts_hold(lint):
    done = lint()
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("core/paceline/types.py", "import paceline_mlx", "The host imports no plugin"),
        ("core/paceline/chat/template.py", "import llama_cpp", "The host imports no plugin"),
        ("core/paceline/library/library.py", "import paceline.api", "The rooms of the host"),
        ("plugins/paceline_mlx/engine.py", "from paceline.store import Store", "Plugins use the names"),
        ("plugins/paceline_mlx/engine.py", "import mlx_lm", "Plugins import no worker and no engine"),
        ("plugins/paceline_mlx/engine.py", "import paceline_llama_cpp", "Plugins do not know each other"),
        ("runtimes/paceline_worker/loop.py", "from paceline import Engine", "Workers import nothing of the host"),
        ("runtimes/paceline_worker/loop.py", "import llama_cpp", "What all workers share knows no engine"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(lint, tmp_path, file, line, contract):
    path = tmp_path / file
    path.write_text(path.read_text() + f"\n{line}\n")
    done = lint()
    assert done.returncode == 1
    broken = [text for text in done.stdout.splitlines() if contract in text]
    assert broken
    assert "BROKEN" in done.stdout.split(contract, 1)[1].split("KEPT")[0]
