"""The engine: what can be installed, how its worker starts, which pairs work."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from paceline import Engine, PairStatus, PairVerdict, Recipe, Release, Requirements, python_worker
from paceline_echo.format import read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paceline import Model, Runtime, WorkerSpec


class EchoEngine(Engine):
    name = "echo"
    formats = ("echo",)

    def releases(self) -> Iterable[Release]:
        yield Release(
            engine="echo",
            version="1.0.0",
            platform="any",
            formats=("echo",),
            requires=Requirements(python=">=3.11"),
            recipe=Recipe(),  # the worker needs no package
            features=("generate", "draft", "tokenize"),
            notes="repeats the last line of the prompt",
        )

    def worker(self, runtime: Runtime) -> WorkerSpec:
        spec = python_worker(runtime.python, "paceline_echo_worker", worker_root())
        faults = os.environ.get("PACELINE_ECHO_FAULTS")
        return replace(spec, env={"PACELINE_ECHO_FAULTS": faults}) if faults else spec

    def judge_pair(self, main: Model, draft: Model, rules: str) -> PairVerdict:
        if main.facts.pairing["key"] == draft.facts.pairing["key"]:
            return PairVerdict(PairStatus.COMPATIBLE, "the vocabularies are equal")
        ours, theirs = read_vocabulary(main.path), read_vocabulary(draft.path)
        differing = (i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
        token = next(differing, None)
        if token is None:
            sizes = f"{len(ours)} and {len(theirs)} words"
            return PairVerdict(PairStatus.VOCABULARY_SIZE_DIFFERS, f"the vocabularies have {sizes}")
        words = f"{ours[token]!r} / {theirs[token]!r}"
        return PairVerdict(PairStatus.TOKEN_DIFFERS, f"word {token} differs: {words}")


def worker_root() -> Path:
    """The folder to put on the worker's path: it holds the worker's package and nothing else."""
    return Path(str(resources.files("paceline_echo"))) / "_worker"
