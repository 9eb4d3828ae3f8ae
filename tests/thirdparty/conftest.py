"""Paceline and paceline-echo as users have them: wheels, installed into an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
ECHO = Path(__file__).parent / "paceline-echo"

WORDS = ["To", " be", " or", " not", " to", " be,", " that", " is", " the", " question"]
CARD = "An old parrot that has heard the line so often that it never gets a word wrong."
PARROT = {"name": "Parrot", "parameters": 2000, "context_length": 8192, "vocabulary": WORDS, "card": CARD}
CHICK = {"name": "Chick", "parameters": 1000, "context_length": 8192, "vocabulary": WORDS, "wrong_every": 4}
STRANGER = {"name": "Stranger", "parameters": 1000, "context_length": 8192, "vocabulary": [*WORDS[:3], " nought"]}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> tuple[Path, Path]:
    """The wheels of the host and of the echo plugin, built with the build backend that is installed here."""
    return tuple(_build(source, tmp_path_factory.mktemp("dist")) for source in (ROOT, ECHO))


@dataclass(frozen=True)
class Installed:
    """An environment with both wheels, and folders of its own for everything Paceline keeps."""

    bin: Path
    env: dict[str, str]
    models: Path

    @property
    def python(self) -> Path:
        return self.bin / "python"

    def paceline(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.bin / "paceline", *args],
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    def json(self, *args: str, **env: str):
        done = self.paceline(*args, "--json", **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def installed(wheels, tmp_path_factory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("installed")
    uv = [sys.executable, "-m", "uv"]
    quiet = {"capture_output": True, "text": True, "cwd": folder}
    for command in (
        [*uv, "venv", "--python", sys.executable, folder / "venv"],
        [*uv, "pip", "install", "--python", folder / "venv", *wheels],
    ):
        done = subprocess.run(command, **quiet)
        assert done.returncode == 0, done.stderr
    models = folder / "models"
    for name, model in {"parrot": PARROT, "chick": CHICK, "stranger": STRANGER}.items():
        path = models / "birds" / name / f"{name}.echo"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(model))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PACELINE_", "PYTHON", "VIRTUAL_ENV"))}
    env |= {
        "PACELINE_HOME": str(folder / "home"),
        "PACELINE_CACHE": str(folder / "cache"),
        "PACELINE_MODELS": str(models),
        "PACELINE_UPDATE": "off",
        "COLUMNS": "200",
    }
    return Installed(folder / "venv" / "bin", env, models)


def _build(source: Path, into: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", into, source],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = into.glob("*.whl")
    return wheel
