"""Reading a home folder: what is installed, what is selected, and what could be selected instead. Changes nothing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from paceline import query, refusals
from paceline.errors import AmbiguousError, InUseError, NotFoundError, StoreError
from paceline.runtime import Runtime
from paceline.store import health, selection, transaction, uses
from paceline.store.manifest import MANIFEST, foreign, read_runtime
from paceline.store.selection import Selection
from paceline.untrusted_json import read_object
from paceline.versions import order

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Fallback:
    """A runtime to try where another did not load a model."""

    runtime: Runtime
    for_all: bool
    """Whether its success shows that the other should serve no model, rather than this one alone."""


class StoreReader:
    """The runtimes under one home folder, as everybody may read them without a lock."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.folder = home / "runtimes"
        self.staging = home / "staging"
        self.logs = home / "logs"
        self._selection_file = home / "selection.json"

    # --- what is there ---------------------------------------------------------------------------------------------

    def runtimes(self) -> tuple[Runtime, ...]:
        """Every installed runtime, by name and then newest first."""
        return tuple(query.by_name_newest_first(r for r in map(read_runtime, self._folders()) if r is not None))

    def incomplete(self) -> tuple[str, ...]:
        """The names of the folders among the runtimes that do not count as installed and are not being deleted."""
        names = sorted(f.name for f in self._folders() if read_runtime(f) is None)
        gone = transaction.half_gone(self.staging) if names else ()
        return tuple(name for name in names if name not in gone)

    def find(self, runtime_id: str) -> Runtime | None:
        """The installed runtime of exactly this id."""
        return read_runtime(self.folder / runtime_id)

    def get(self, text: str) -> Runtime:
        """The one installed runtime a query means; an id means no other. Raises NotFoundError or AmbiguousError."""
        if text in (folder.name for folder in self._folders()) and (named := self.find(text)) is not None:
            return named
        found = self.match(text)
        if len(found) > 1:
            raise AmbiguousError(
                f"{text!r} means several runtimes: {', '.join(r.id for r in found)}",
                help=f"give the full name, such as `{found[0].id}`",
            )
        return found[0]

    def match(self, text: str) -> tuple[Runtime, ...]:
        """Every installed runtime a query means, by name and then newest first. Raises NotFoundError for none."""
        installed = self.runtimes()
        found = query.select(text, installed)
        if not found:
            names = ", ".join(r.id for r in installed) or "none"
            raise NotFoundError(
                f"no installed runtime matches {text!r} (installed: {names})",
                help="`paceline runtime ls` lists what is installed, `paceline runtime get --list` what could be",
            )
        return tuple(found)

    def manifest(self, runtime: Runtime) -> dict[str, Any]:
        """Everything the manifest says: versions, the lock, the smoke test's answer, when it was installed.

        Raises NotFoundError when the runtime was removed since it was listed, StoreError when it was damaged.
        """
        with transaction.explained(f"reading {runtime.id}", self.home):
            try:
                return read_object(runtime.directory / MANIFEST)
            except FileNotFoundError:
                raise NotFoundError(
                    f"{runtime.id} is no longer installed", help="`paceline runtime ls` lists what is"
                ) from None
            except ValueError as error:
                raise StoreError(
                    f"the manifest of {runtime.id} is damaged: {error}", help=f"`paceline runtime repair {runtime.id}`"
                ) from None

    def size(self, runtime: Runtime) -> int | None:
        """The bytes of an installed runtime, as its manifest has them; None where it does not say."""
        size = self._noted(runtime, "size_bytes")
        return size if isinstance(size, int) else None

    def size_of_newest(self, name: str) -> int | None:
        """The bytes of the newest version of the runtimes called `name` whose manifest says them."""
        sizes = (self.size(runtime) for runtime in self.runtimes() if runtime.name == name)
        return next((size for size in sizes if size is not None), None)

    def build_time(self, name: str) -> float | None:
        """How many seconds the newest version of the runtimes called `name` took to compile here, where one did."""
        times = (self._noted(runtime, "build_s") for runtime in self.runtimes() if runtime.name == name)
        return next((float(taken) for taken in times if isinstance(taken, (int, float))), None)

    def _noted(self, runtime: Runtime, key: str) -> Any:
        """What its manifest says under `key`; None where it says nothing, is damaged or was removed meanwhile."""
        try:
            return self.manifest(runtime).get(key)
        except (NotFoundError, StoreError):
            return None

    def last_used(self, runtime: Runtime) -> datetime | None:
        """When a process began or ended to use it last; None when none ever did."""
        seconds = uses.last_used(self._uses(runtime.id))
        return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None

    def in_use_by(self, runtime: Runtime) -> tuple[int, ...]:
        """The ids of the processes that use it now."""
        return uses.holders(self._uses(runtime.id))

    def use_of(self, runtime_id: str) -> str | None:
        """A sentence that names the processes which use a runtime, installed or not; None when none does."""
        pids = uses.holders(self._uses(runtime_id))
        return f"{runtime_id} is in use by process {', '.join(map(str, pids))}" if pids else None

    def plugins_in_use_by(self, generation: int) -> tuple[int, ...]:
        """The ids of the processes that use a generation of plugins."""
        return uses.holders(self._uses_of_plugins(generation))

    def ended_uses(self) -> tuple[Path, ...]:
        """The files that processes left which used a runtime and ended without saying so."""
        folder = self.home / "uses"
        return tuple(f for uses_of in sorted(folder.glob("*")) for f in uses.ended(uses_of))

    # --- which one is used -----------------------------------------------------------------------------------------

    def selection(self) -> Selection:
        """What is selected, installed or not. Raises StoreError for a file that is damaged."""
        try:
            return selection.from_json(read_object(self._selection_file))
        except FileNotFoundError:
            return Selection()
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"the selection {self._selection_file} cannot be read: {refusals.words(error)}",
                help=refusals.way_out(error, self._selection_file)
                or "delete the file and choose again with `paceline runtime select`",
            ) from None

    def selection_stamp(self) -> tuple[int, int] | None:
        """Another one after every change of the selection; None while there is none. Reads no file."""
        try:
            state = self._selection_file.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_ino

    def selected(self, model_format: str, model_id: str | None = None) -> Runtime | None:
        """The runtime that serves `model_format`, or the one chosen for `model_id`; None when it is not installed."""
        found = map(self.find, self.selection().for_model(model_format, model_id))
        return next((runtime for runtime in found if runtime is not None and model_format in runtime.formats), None)

    def damage(self) -> dict[str, tuple[str, ...]]:
        """By id, what the quick check finds wrong with the runtimes that are selected; empty when all can be used."""
        found = {i: health.quick(self.folder / i) for i in sorted(self.selection().ids())}
        return {i: state.problems for i, state in found.items() if not state.ok}

    def latest(self) -> dict[str, Runtime]:
        """By format, the newest installed version of what serves it, where that is a newer one.

        Pinned selections stay, and versions that are held or broken are passed over.
        """
        chosen, found = self.selection(), {}
        for model_format, current in chosen.formats.items():
            name, _, version = current.rpartition("@")
            newer = [r for r in self.runtimes() if r.name == name and max(version, r.version, key=order) != version]
            if current not in chosen.pins:
                usable = (r for r in newer if model_format in r.formats and r.id not in chosen.holds)
                if best := next((r for r in usable if health.quick(r.directory).ok), None):
                    found[model_format] = best
        return found

    def rollback_targets(self, model_format: str | None = None) -> dict[str, Runtime]:
        """By format, where `rollback` would go. Raises NotFoundError when there is nothing to go back to."""
        chosen = self.selection()
        found = {}
        for name in (model_format,) if model_format is not None else sorted(chosen.previous):
            history = chosen.previous.get(name, ())
            whole = {r.id: r for r in map(self.find, history) if r is not None and _is_whole(r)}
            if (target := chosen.last_good(name, whole)) is not None:
                found[name] = whole[target]
        if not found:
            raise self._nothing_to_return_to(model_format, chosen)
        return found

    def fallbacks(self, runtime: Runtime, model_format: str, model_id: str) -> tuple[Fallback, ...]:
        """What to try, in this order, when `runtime`, selected for a model, did not load it.

        While `runtime` has loaded no model of the format, what `rollback` would return to. Then what loaded this model
        last, unless that is `runtime` itself, which then is not to blame. What is held or broken is left out.
        """
        chosen = self.selection()
        found: list[Fallback] = []
        if chosen.formats.get(model_format) == runtime.id and runtime.id not in chosen.worked.get(model_format, ()):
            with suppress(NotFoundError):
                found.append(Fallback(self.rollback_targets(model_format)[model_format], for_all=True))
        last = self.find(chosen.loaded[model_id]) if model_id in chosen.loaded else None
        left_out = {runtime.id, *(fallback.runtime.id for fallback in found), *chosen.holds}
        if last is not None and last.id not in left_out and model_format in last.formats and _is_whole(last):
            found.append(Fallback(last, for_all=False))
        return tuple(found)

    def protection(self, runtime: Runtime, chosen: Selection | None = None) -> str | None:
        """Why clean-up leaves `runtime` alone; None when nothing needs it."""
        chosen = chosen or self.selection()
        if used := self._why_not_removed(runtime.id, chosen):
            return used
        if runtime.linked is not None:
            return f"{runtime.id} is linked to {runtime.linked}"
        return self._why_returned_to(runtime.id, chosen)

    def protection_of_incomplete(self, name: str, chosen: Selection | None = None) -> str | None:
        """Why clean-up leaves a folder alone that does not count as installed; None when nobody can need it.

        One whose manifest is whole and not of this Paceline, or of another runtime, is somebody's, and stays.
        """
        chosen = chosen or self.selection()
        if chosen_for := self._why_not_removed(name, chosen):
            return chosen_for
        if target := self._why_returned_to(name, chosen):
            return f"{target}, once it is mended"
        whose = foreign(self.folder / name)
        return f"the manifest of {name} {whose}" if whose else None

    def check_unused(self, runtime_id: str) -> None:
        """Raise InUseError, naming the processes, when one uses this runtime."""
        if used := self.use_of(runtime_id):
            raise InUseError(
                used, help="end that process, or unload the models it serves with this runtime, and try again"
            )

    def check_removable(self, runtime_id: str, *, force: bool = False) -> None:
        """Raise InUseError where removing this runtime would, as far as can be known before."""
        self.check_unused(runtime_id)
        if not force and (reason := self._why_not_removed(runtime_id, self.selection())):
            raise InUseError(reason, help=REMOVE_ALL_THE_SAME)

    def usable(self, runtime: Runtime) -> Runtime:
        """`runtime` as it is now. Raises what selecting it would: NotFoundError when it is gone, StoreError when it is
        broken."""
        found = self.find(runtime.id)
        if found is None:
            raise NotFoundError(f"{runtime.id} is not installed", help=f"`paceline runtime get {runtime.id}`")
        state = health.quick(found.directory)
        if not state.ok:
            raise StoreError(
                f"{runtime.id} is {state.state}: {'; '.join(state.problems)}", help=self.how_to_mend(runtime.id)
            )
        return found

    def how_to_mend(self, runtime_id: str) -> str:
        """What to do about a damaged runtime: a command, or whose it is where it is linked."""
        found = self.find(runtime_id)
        if found is None or found.linked is None:
            return f"`paceline runtime repair {runtime_id}`"
        return (
            f"mend {found.linked}, link it again from where it is now, or unlink it: "
            f"`paceline runtime remove {runtime_id}`"
        )

    # --- how -------------------------------------------------------------------------------------------------------

    def _folders(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be read: {error.strerror}",
                help=refusals.way_out(error, self.folder) or "see that it is a folder",
            ) from None

    def _uses(self, runtime_id: str) -> Path:
        return self.home / "uses" / runtime_id

    def _uses_of_plugins(self, generation: int) -> Path:
        return self.home / "uses" / f"plugins.{generation}"  # no runtime's name: those have an @

    def _nothing_to_return_to(self, model_format: str | None, chosen: Selection) -> NotFoundError:
        names = [model_format] if model_format is not None else sorted(chosen.previous)
        earlier = [r for name in names for r in chosen.previous.get(name, ())]
        what = f"of {model_format} " if model_format is not None else ""
        if not earlier:
            return NotFoundError(
                f"no earlier selection {what}is known, so there is nothing to return to",
                help="`paceline runtime ls` shows what is installed, `paceline runtime select` chooses",
            )
        reasons = {r: self._why_not_returned_to(r, chosen) for r in earlier}
        damaged = next((r for r, why in reasons.items() if why in (_BROKEN, _INCOMPLETE)), None)
        return NotFoundError(
            f"no earlier selection {what}can be returned to: {', '.join(f'{r} {why}' for r, why in reasons.items())}",
            help=f"mend it first: `paceline runtime repair {damaged}`"
            if damaged is not None
            else "choose one all the same with `paceline runtime select`",
        )

    def _why_not_returned_to(self, runtime_id: str, chosen: Selection) -> str:
        if self.find(runtime_id) is None:
            return _INCOMPLETE if (self.folder / runtime_id).is_dir() else "is not installed"
        if runtime_id in chosen.holds:
            return "is held"
        return _BROKEN

    def _why_returned_to(self, name: str, chosen: Selection) -> str | None:
        """Why a rollback needs the runtime `name`; None when it does not.

        What is broken, or its manifest, may be mended; until it is, rollback goes past it.
        """
        for model_format, history in chosen.previous.items():
            there = [i for i in history if (self.folder / i).is_dir()]
            installed = [i for i in there if self.find(i) is not None]
            whole = [i for i in installed if health.quick(self.folder / i).ok]
            if name in (chosen.last_good(model_format, among) for among in (there, installed, whole)):
                return f"{name} is what `paceline runtime rollback` would return {model_format} to"
        return None

    def _why_not_removed(self, runtime_id: str, chosen: Selection) -> str | None:
        if runtime_id in chosen.ids():
            what = ", ".join((*chosen.formats_of(runtime_id), *(f"model {m}" for m in chosen.models_of(runtime_id))))
            return f"{runtime_id} is selected for {what}"
        return f"{runtime_id} is pinned" if runtime_id in chosen.pins else None


_BROKEN, _INCOMPLETE = "is broken", "is incomplete"

REMOVE_ALL_THE_SAME = "select another runtime or unpin it first, or remove this one with --force"


def _is_whole(runtime: Runtime) -> bool:
    return health.quick(runtime.directory).ok
