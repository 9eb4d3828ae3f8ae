"""What is installed and what is selected, under the home folder:

    runtimes/<id>/           an installed runtime, never changed: env/, requirements.txt, build.log,
                             files.json (size and sha256 of every file), manifest.json (written last)
    selection.json           which runtime serves a model format, and per-model overrides
    staging/  locks/  logs/  installs under way, their locks, the logs of failed ones

A runtime counts when its manifest is there and readable; nothing is probed.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline import query, transaction
from paceline.errors import AmbiguousError, InUseError, NotFoundError, StoreError
from paceline.types import Runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Selection:
    """Runtime ids by model format, and by model id for the models that have their own."""

    formats: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    def formats_of(self, runtime_id: str) -> tuple[str, ...]:
        return tuple(sorted(f for f, selected in self.formats.items() if selected == runtime_id))

    def uses(self, runtime_id: str) -> bool:
        return runtime_id in self.formats.values() or runtime_id in self.models.values()

    def without(self, runtime_id: str) -> Selection:
        return Selection(
            {k: v for k, v in self.formats.items() if v != runtime_id},
            {k: v for k, v in self.models.items() if v != runtime_id},
        )


class Store:
    """The runtimes under one home folder. Reading takes no lock; every change does."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "runtimes"
        self.staging = home / "staging"
        self.logs = home / "logs"
        self._selection_file = home / "selection.json"

    def runtimes(self) -> tuple[Runtime, ...]:
        """Every installed runtime, by name and then newest first."""
        try:
            folders = list(self.folder.iterdir())
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be read: {error.strerror}", help="check its permissions") from None
        return tuple(query.by_name_newest_first(r for r in map(_read_runtime, folders) if r is not None))

    def find(self, runtime_id: str) -> Runtime | None:
        """The installed runtime of exactly this id."""
        return _read_runtime(self.folder / runtime_id)

    def get(self, text: str) -> Runtime:
        """The one installed runtime a query means. Raises NotFoundError or AmbiguousError."""
        installed = self.runtimes()
        found = query.select(text, installed)
        if not found:
            names = ", ".join(r.id for r in installed) or "none"
            raise NotFoundError(
                f"no installed runtime matches {text!r} (installed: {names})",
                help=f"`paceline runtime get {text}` installs one, `paceline runtime get --list` shows what exists",
            )
        if len(found) > 1:
            raise AmbiguousError(
                f"{text!r} means several runtimes: {', '.join(r.id for r in found)}",
                help=f"give the full name, such as `{found[0].id}`",
            )
        return found[0]

    def manifest(self, runtime: Runtime) -> dict[str, Any]:
        """Everything the manifest says: versions, the lock, the smoke test's answer, when it was installed."""
        return _read_json(runtime.directory / MANIFEST)

    def selection(self) -> Selection:
        """What is selected, installed or not. Raises StoreError for a file that is damaged."""
        try:
            data = _read_json(self._selection_file)
            if data.get("schema_version") != SCHEMA_VERSION:
                raise ValueError(f"schema_version {data.get('schema_version')!r} is not {SCHEMA_VERSION}")
            return Selection(_id_map(data["formats"]), _id_map(data.get("models", {})))
        except FileNotFoundError:
            return Selection()
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"the selection {self._selection_file} cannot be read: {error}",
                help="delete the file and choose again with `paceline runtime select`",
            ) from None

    def selected(self, model_format: str, model_id: str | None = None) -> Runtime | None:
        """The runtime that serves `model_format`, or the one chosen for `model_id`; None when it is not installed."""
        selection = self.selection()
        own = selection.models.get(model_id) if model_id is not None else None
        if own is not None and (runtime := self.find(own)) is not None and model_format in runtime.formats:
            return runtime
        chosen = selection.formats.get(model_format)
        return self.find(chosen) if chosen is not None else None

    def select(self, runtime: Runtime) -> tuple[str, ...]:
        """Let `runtime` serve every format it can; returns the formats whose runtime changed."""
        with self._changing("selecting a runtime"):
            return self._select(runtime, runtime.formats)

    def select_where_none(self, runtime: Runtime) -> tuple[str, ...]:
        """Let `runtime` serve the formats that have no installed runtime yet; returns those formats."""
        with self._changing("selecting a runtime"):
            return self._select(runtime, tuple(f for f in runtime.formats if self.selected(f) is None))

    def remove(self, runtime: Runtime, *, force: bool = False) -> None:
        """Delete `runtime`. Raises InUseError for one that is selected, unless `force`, which unselects it."""
        with self._changing(f"removing {runtime.id}"):
            selection = self.selection()
            if selection.uses(runtime.id):
                if not force:
                    formats = ", ".join(selection.formats_of(runtime.id)) or "some models"
                    raise InUseError(
                        f"{runtime.id} is selected for {formats}",
                        help="select another runtime first, or remove this one with --force",
                    )
                # Unselected first: a crash between the two leaves an installed runtime, not a dangling selection.
                self._write(selection.without(runtime.id))
            if not runtime.directory.exists():
                raise NotFoundError(f"{runtime.id} was removed by another process")
            transaction.discard(runtime.directory, self.staging)

    def publish(self, staged: Path, runtime_id: str) -> Runtime:
        """Turn a finished folder of `staging`, manifest included, into an installed runtime."""
        with self._changing(f"installing {runtime_id}"):
            transaction.publish(staged, self.folder / runtime_id)
        runtime = self.find(runtime_id)
        if runtime is None:
            raise StoreError(f"{self.folder / runtime_id} vanished after it was installed", help="install it again")
        return runtime

    def lock_file(self, name: str) -> Path:
        """Where the lock `name` of this home lives; makes the folder."""
        folder = self.home / "locks"
        with transaction.explained("taking a lock", self.home):
            folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.lock"

    def _select(self, runtime: Runtime, formats: tuple[str, ...]) -> tuple[str, ...]:
        if self.find(runtime.id) is None:
            raise NotFoundError(f"{runtime.id} is not installed", help=f"`paceline runtime get {runtime.id}`")
        selection = self.selection()
        changed = tuple(f for f in formats if selection.formats.get(f) != runtime.id)
        if changed:
            self._write(Selection({**selection.formats, **dict.fromkeys(changed, runtime.id)}, selection.models))
        return changed

    def _write(self, selection: Selection) -> None:
        value = {"schema_version": SCHEMA_VERSION, "formats": selection.formats, "models": selection.models}
        transaction.write_json(self._selection_file, value)

    @contextmanager
    def _changing(self, doing: str) -> Iterator[None]:
        from filelock import FileLock

        path = self.lock_file("store")
        with transaction.explained(doing, self.home), FileLock(path):
            yield


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    windows = environment / "Scripts" / "python.exe"
    return windows if windows.exists() else environment / "bin" / "python"


def _read_runtime(folder: Path) -> Runtime | None:
    try:
        data = _read_json(folder / MANIFEST)
        runtime = Runtime(
            engine=str(data["engine"]),
            version=str(data["version"]),
            platform=str(data["platform"]),
            formats=tuple(map(str, data["formats"])),
            features=tuple(map(str, data["features"])),
            directory=folder,
            python=python_of(folder / "env"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return runtime if data.get("schema_version") == SCHEMA_VERSION and runtime.id == folder.name else None


def _read_json(file: Path) -> dict[str, Any]:
    data = json.loads(file.read_bytes())
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds no JSON object")
    return data


def _id_map(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f"expected a map of runtime ids, found {value!r}")
    return value
