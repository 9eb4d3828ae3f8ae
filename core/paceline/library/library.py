"""Finds the models below the models folders and answers which model a name means."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.errors import AmbiguousError, ModelFileError, NotFoundError
from paceline.library.facts_cache import FactsCache
from paceline.library.naming import Name, ids, name_of
from paceline.plugin_faults import FAULTS, WAY_OUT, owner, say, show
from paceline.types import Model, ModelFacts

if TYPE_CHECKING:
    from paceline.engine import ModelFormat
    from paceline.plugins import Plugins

FRESH_S = 2.0
"""A look at the folders counts for so long; then the next question looks again."""
NO_PUBLISHER = "local"


@dataclass(frozen=True)
class ModelFolder:
    """A folder with models below it. Without a `publisher` the first folder below it names one."""

    path: Path
    publisher: str | None = None


@dataclass(frozen=True)
class UnreadableModel:
    """What looked like a model, and why it is none."""

    path: Path
    error: ModelFileError


def open_library(plugins: Plugins) -> Library:
    """The user's library: the models folder, the extra folders, the samples of the package."""
    from paceline import paths

    folders = [ModelFolder(paths.models()), *map(ModelFolder, paths.extra_models())]
    folders.append(ModelFolder(paths.samples(), publisher="paceline"))
    return Library(plugins.formats.values(), folders, paths.cache() / "models.sqlite")


class Library:
    """The models of some folders. Safe to use from several threads and processes at once.

    Metadata is read when a model is first seen and kept in `cache_file`, which may be deleted at any time.
    """

    def __init__(self, formats: Iterable[ModelFormat], folders: Sequence[ModelFolder | Path], cache_file: Path) -> None:
        self._formats = tuple(formats)
        self._folders = tuple(f if isinstance(f, ModelFolder) else ModelFolder(f) for f in folders)
        self._cache_file = cache_file
        self._cache: FactsCache | None = None
        self._lock = threading.Lock()
        self._shelf = _Shelf()
        self._looked_at = -FRESH_S

    def models(self) -> tuple[Model, ...]:
        """Every readable model, ordered by id."""
        return self._fresh_shelf().models

    def problems(self) -> tuple[UnreadableModel, ...]:
        """Every file or folder that looked like a model and could not be read, ordered by path."""
        return self._fresh_shelf().problems

    def get(self, model_id: str, *, param: str = "model") -> Model:
        """The model that `model_id` means: an id, `name@quantization`, or `publisher/name[@quantization]`.

        Case does not matter. Raises `AmbiguousError` for a name of several models and `NotFoundError` for an unknown
        one, both with `param` as the request field they are about.
        """
        # The last look will do for a model it knows: a request must not wait for the folders to be walked.
        model = self._shelf.by_id.get(model_id.strip().lower())
        return model or self._fresh_shelf().find(model_id, param)

    def refresh(self) -> None:
        """Look at the folders now. New and changed models are read, which takes up to 0.1 s each."""
        with self._lock:
            self._look()

    def _fresh_shelf(self) -> _Shelf:
        with self._lock:
            if time.monotonic() - self._looked_at >= FRESH_S:
                self._look()
            return self._shelf

    def _look(self) -> None:
        if self._cache is None:
            self._cache = FactsCache(self._cache_file)
        found: list[_Found] = []
        problems: list[UnreadableModel] = []
        keys: set[tuple[str, str]] = set()
        for model_format, path, publisher in self._candidates(problems):
            keys.add((str(path), model_format.name))
            outcome = _read(self._cache, model_format, path)
            if isinstance(outcome, ModelFileError):
                problems.append(UnreadableModel(path, outcome))
            else:
                found.append(_Found(model_format.name, path, publisher, outcome))
        self._cache.forget_vanished(keys)
        self._shelf = _Shelf.of(found, problems)
        self._looked_at = time.monotonic()

    def _candidates(self, problems: list[UnreadableModel]) -> Iterator[tuple[ModelFormat, Path, str]]:
        """Each model once, even if folders overlap or a link leads to it a second time.

        Where a format's own bug ends the search of a folder, that is among the `problems`.
        """
        for model_format in self._formats:
            seen: set[object] = set()
            for folder in self._folders:
                root = str(folder.path)
                try:
                    for path in map(Path, model_format.find(folder.path)):
                        identity = _identity(path)
                        if identity not in seen:
                            seen.add(identity)
                            yield model_format, path, folder.publisher or _publisher(root, str(path))
                except FAULTS as error:
                    said = f"the format {owner(model_format)} could not search {folder.path}: {say(error)}"
                    problems.append(UnreadableModel(folder.path, ModelFileError(said, help=WAY_OUT)))


@dataclass(frozen=True)
class _Found:
    format: str
    path: Path
    publisher: str
    facts: ModelFacts


@dataclass(frozen=True)
class _Shelf:
    """One look at the folders, indexed."""

    models: tuple[Model, ...] = ()
    problems: tuple[UnreadableModel, ...] = ()
    by_id: dict[str, Model] = field(default_factory=dict)
    by_name: dict[str, list[tuple[Name, Model]]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: list[_Found], problems: list[UnreadableModel]) -> _Shelf:
        names = [name_of(f.path, f.publisher, f.format) for f in found]
        model_ids = ids(names, [f.facts.quantization or f.format for f in found])
        pairs = [
            (name, Model(id=model_id, format=f.format, path=f.path, publisher=f.publisher, facts=f.facts))
            for name, model_id, f in zip(names, model_ids, found, strict=True)
        ]
        pairs.sort(key=lambda pair: pair[1].id)
        by_name: dict[str, list[tuple[Name, Model]]] = {}
        for name, model in pairs:
            by_name.setdefault(name.base, []).append((name, model))
        models = tuple(model for _, model in pairs)
        problems = sorted(problems, key=lambda p: p.path)
        return cls(models, tuple(problems), {m.id: m for m in models}, by_name)

    def find(self, model_id: str, param: str) -> Model:
        wanted = model_id.strip().lower()
        if wanted in self.by_id:
            return self.by_id[wanted]
        matches = self._matches(wanted)
        if len(matches) == 1:
            return matches[0]
        if matches:
            choices = ", ".join(m.id for m in matches)
            raise AmbiguousError(f"{model_id!r} means several models: {choices}", help="name one of them", param=param)
        for problem in self.problems:
            if wanted in (problem.path.name.lower(), problem.path.stem.lower()):
                raise NotFoundError(
                    f"{model_id!r} cannot be used: {problem.error.message}", help=problem.error.help, param=param
                )
        raise NotFoundError(f"no model is called {model_id!r}", help=self._suggestion(wanted), param=param)

    def _matches(self, wanted: str) -> list[Model]:
        publisher, slash, rest = wanted.rpartition("/")
        name, _, quantization = rest.partition("@")
        matches = [
            model
            for parts, model in self.by_name.get(name, ())
            if (not slash or parts.publisher == publisher)
            and (not quantization or quantization in (parts.quantization, (model.facts.quantization or "").lower()))
        ]
        # A file's own name is good too: `qwen2.5-7b-instruct-q4_k_m`.
        return matches or [m for m in self.models if wanted in (m.path.name.lower(), m.path.stem.lower())]

    def _suggestion(self, wanted: str) -> str:
        from difflib import get_close_matches

        close = get_close_matches(wanted, self.by_id, n=3, cutoff=0.5)
        close += [i for i in self.by_id if wanted and wanted in i and i not in close][:3]
        if close:
            return f"did you mean {' or '.join(close)}? `paceline ls` shows all"
        return "`paceline ls` shows the models of the library"


def _identity(path: Path) -> object:
    """Equal for two paths to the same place. Hard links are files of their own: their names may mean something."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a thousand of them at every start
    except OSError:
        return str(path)
    return (status.st_dev, status.st_ino) if status.st_nlink == 1 else os.path.realpath(path)


def _read(cache: FactsCache, model_format: ModelFormat, path: Path) -> ModelFacts | ModelFileError:
    """What the model's files say, or why they cannot be read; a format's own bug stops nothing but its model."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path.name).decode("utf-8", "replace")
        return ModelFileError(f"{shown} has a name that is not UTF-8", help="rename it, or the folder it is in")
    try:
        stamp = _stamp(model_format, path)
        known = cache.recall(path, model_format.name, stamp)
        if known is not None:
            return known
    except ModelFileError as error:
        return error
    except FAULTS as error:
        return _failed(model_format, path, say(error))
    outcome: ModelFacts | ModelFileError
    try:
        outcome = model_format.read(path)
    except ModelFileError as error:
        outcome = error
    except FAULTS as error:
        return _failed(model_format, path, say(error))
    if not isinstance(outcome, ModelFacts | ModelFileError):
        return _failed(model_format, path, f"it answered {show(outcome)}")
    cache.remember(path, model_format.name, stamp, outcome)
    return outcome


def _failed(model_format: ModelFormat, path: Path, why: str) -> ModelFileError:
    return ModelFileError(f"the format {owner(model_format)} could not read {path.name}: {why}", help=WAY_OUT)


def _stamp(model_format: ModelFormat, path: Path) -> str:
    """The reader's version, and size and time of every file; -1 where there is none (a shard yet to come)."""
    parts = [str(model_format.version)]
    for file in model_format.files(path):
        try:
            status = os.stat(file)  # noqa: PTH116 - a thousand of them at every start
            parts.append(f"{file.name}:{status.st_size}:{status.st_mtime_ns}")
        except OSError:
            parts.append(f"{file.name}:-1")
    return "|".join(parts)


def _publisher(root: str, path: str) -> str:
    """The first folder below the root: `publisher/model/file.gguf`."""
    head, separator, _ = path[len(root) :].lstrip(os.sep).partition(os.sep)
    return head if separator else NO_PUBLISHER
