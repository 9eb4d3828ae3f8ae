"""The two things a plugin can bring: an engine, and a model format."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from paceline.types import PairStatus, PairVerdict, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from paceline.loading import LoadConfig, MemoryEstimate
    from paceline.types import Model, ModelFacts, Release, Runtime, Upstream


class ModelFormat(ABC):
    """How models of one format are found on disk and what their metadata says."""

    name: str
    """`gguf`, `mlx`, ..."""
    version: int = 1
    """Raised when `read` says something else about the same files: what was remembered of them is read again."""

    @abstractmethod
    def find(self, folder: Path) -> Iterable[Path]:
        """Yield every model of this format below `folder`: a file (the first shard), or a model's own folder."""

    @abstractmethod
    def files(self, path: Path) -> Sequence[Path]:
        """The files whose size and modification time say whether what was read of `path` still holds."""

    @abstractmethod
    def read(self, path: Path) -> ModelFacts:
        """Read the metadata. Never loads weights; raises `ModelFileError` for what cannot be read."""


class Engine(ABC):
    """One engine: which formats it serves, which releases of it exist, how its worker is started, which pairs work.

    An instance is made whenever the host starts, so it must be cheap: no engine package, no probing.
    """

    name: str
    """`llama.cpp`; unique among all plugins."""
    formats: tuple[str, ...]
    pair_rules: tuple[str, ...] = ("default",)
    """Names of the variants of the pair rules, the one in force first."""

    upstream: Upstream | None = None
    """Where new versions of its releases appear first; None: nowhere but in the registry."""

    def releases(self) -> Iterable[Release]:
        """Releases that the plugin itself knows, beside those of the registry."""
        return ()

    @abstractmethod
    def worker(self, runtime: Runtime) -> WorkerSpec:
        """How the worker of an installed runtime is started."""

    def estimate(
        self, model: Model, config: LoadConfig, *, runtime: Runtime, draft: bool = False
    ) -> MemoryEstimate | None:
        """What loading `model` would take, told from its metadata; None when this engine cannot tell.

        A `draft` is loaded beside its main model, whose context and number of requests `config` then names. Opens the
        model's files, so it may raise `ModelFileError`; never loads weights.
        """
        return None

    def judge_pair(self, main: Model, draft: Model, rules: str) -> PairVerdict:
        """Whether `draft` can propose for `main` under one of `pair_rules`, without loading either.

        The host has already refused the same model, another format, a draft that is not smaller and what is no
        language model. Nothing but the two `facts.pairing` mappings may decide, because the answer is remembered
        by their keys; the files may be opened to word a refusal.
        """
        if main.facts.pairing.get("key") == draft.facts.pairing.get("key"):
            return PairVerdict(PairStatus.COMPATIBLE, "the vocabularies are equal")
        return PairVerdict(PairStatus.NO_VOCABULARY, f"engine {self.name} has no rule for different vocabularies")


def python_worker(python: Path | str, module: str, *roots: Path) -> WorkerSpec:
    """A worker written in Python: `python` runs `module` and sees its own environment and `roots`, nothing else.

    Isolated mode keeps the user's site-packages and PYTHON* variables out; byte code is not written, because a
    runtime is immutable.
    """
    bootstrap = (
        "import runpy, sys; n = int(sys.argv[1]); sys.path[:0] = sys.argv[2:2 + n]; "
        "module = sys.argv[2 + n]; del sys.argv[1:3 + n]; runpy.run_module(module, run_name='__main__', alter_sys=True)"
    )
    argv = (str(python or sys.executable), "-I", "-B", "-c", bootstrap, str(len(roots)), *map(str, roots), module)
    return WorkerSpec(argv=argv)
