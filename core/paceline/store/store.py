"""What is installed and what is selected, under the home folder:

    runtimes/<id>/           an installed runtime, never changed: env/, requirements.txt, build.log,
                             files.json (size and sha256 of every file), manifest.json (written last);
                             or a link to an environment elsewhere, which is a manifest alone
    selection.json           which runtime serves a model format, and what served it before (see `selection`)
    uses/<id>/               which processes use a runtime, and when it was used last (see `uses`)
    staging/  locks/  logs/  installs under way, their locks, the logs of failed ones

A runtime counts when its manifest is there and readable; `health` says whether the rest of it is, too.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline import query, refusals
from paceline.errors import AmbiguousError, InUseError, NotFoundError, StoreError
from paceline.progress import Phase, silent
from paceline.store import health, selection, transaction, uses
from paceline.store.manifest import MANIFEST, read_json, read_runtime
from paceline.store.selection import Selection
from paceline.types import Runtime
from paceline.versions import order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from paceline.progress import Progress
    from paceline.store.uses import Use

__all__ = ["Selection", "Store"]


class Store:
    """The runtimes under one home folder. Reading takes no lock; every change does."""

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
        """The names of the folders among the runtimes that do not count as installed."""
        return tuple(sorted(f.name for f in self._folders() if read_runtime(f) is None))

    def find(self, runtime_id: str) -> Runtime | None:
        """The installed runtime of exactly this id."""
        return read_runtime(self.folder / runtime_id)

    def get(self, text: str) -> Runtime:
        """The one installed runtime a query means. Raises NotFoundError or AmbiguousError."""
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

        Raises NotFoundError when the runtime was removed since it was listed.
        """
        with transaction.explained(f"reading {runtime.id}", self.home):
            try:
                return read_json(runtime.directory / MANIFEST)
            except FileNotFoundError:
                raise NotFoundError(
                    f"{runtime.id} is no longer installed", help="`paceline runtime ls` lists what is"
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
        except (NotFoundError, StoreError, ValueError):
            return None

    def last_used(self, runtime: Runtime) -> datetime | None:
        """When a process began or ended to use it last; None when none ever did."""
        seconds = uses.last_used(self._uses(runtime.id))
        return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None

    def in_use_by(self, runtime: Runtime) -> tuple[int, ...]:
        """The ids of the processes that use it now."""
        return uses.holders(self._uses(runtime.id))

    def ended_uses(self) -> tuple[Path, ...]:
        """The files that processes left which used a runtime and ended without saying so."""
        folder = self.home / "uses"
        return tuple(f for uses_of in sorted(folder.glob("*")) for f in uses.ended(uses_of))

    # --- which one is used -----------------------------------------------------------------------------------------

    def selection(self) -> Selection:
        """What is selected, installed or not. Raises StoreError for a file that is damaged."""
        try:
            return selection.from_json(read_json(self._selection_file))
        except FileNotFoundError:
            return Selection()
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(
                f"the selection {self._selection_file} cannot be read: {refusals.words(error)}",
                help=refusals.way_out(error, self._selection_file)
                or "delete the file and choose again with `paceline runtime select`",
            ) from None

    def selected(self, model_format: str, model_id: str | None = None) -> Runtime | None:
        """The runtime that serves `model_format`, or the one chosen for `model_id`; None when it is not installed."""
        chosen = self.selection()
        own = chosen.models.get(model_id) if model_id is not None else None
        if own is not None and (runtime := self.find(own)) is not None and model_format in runtime.formats:
            return runtime
        serving = chosen.formats.get(model_format)
        return self.find(serving) if serving is not None else None

    def damage(self) -> dict[str, tuple[str, ...]]:
        """By id, what the quick check finds wrong with the runtimes that are selected; empty when all can be used."""
        chosen = self.selection()
        ids = sorted({*chosen.formats.values(), *chosen.models.values()})
        found = {i: health.quick(self.folder / i) for i in ids}
        return {i: state.problems for i, state in found.items() if not state.ok}

    def select(self, runtime: Runtime) -> tuple[str, ...]:
        """Let `runtime` serve every format it can; returns the formats whose runtime changed."""
        with self._changing("selecting a runtime"):
            return self._select(runtime, runtime.formats)

    def select_instead(self, old: Runtime, new: Runtime) -> tuple[str, ...]:
        """Let `new` serve the formats that `old` serves now; returns those formats."""
        with self._changing("selecting a runtime"):
            return self._select(new, self.selection().formats_of(old.id))

    def select_where_none(self, runtime: Runtime) -> tuple[str, ...]:
        """Let `runtime` serve the formats that have no installed runtime yet; returns those formats. Not a held one."""
        with self._changing("selecting a runtime"):
            if runtime.id in self.selection().holds:
                return ()
            return self._select(runtime, tuple(f for f in runtime.formats if self.selected(f) is None))

    def select_for_model(self, runtime: Runtime, model_id: str) -> None:
        """Let `runtime` serve one model, whatever serves the others of its format."""
        self._change(f"selecting a runtime for {model_id}", lambda s: s.with_model(model_id, self._usable(runtime).id))

    def unselect_model(self, model_id: str) -> None:
        """Let the runtime of its format serve a model again."""
        self._change(f"unselecting the runtime of {model_id}", lambda s: s.with_model(model_id, None))

    def unselect(self, model_format: str) -> None:
        """Let nothing serve a format; `rollback` can return to what did."""
        self._change(f"unselecting the runtime of {model_format}", lambda s: s.without_format(model_format))

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

    def select_latest(self) -> dict[str, Runtime]:
        """Move every selection to what `latest` says; returns what changed."""
        with self._changing("selecting the latest runtimes"):
            found, chosen = self.latest(), self.selection()
            for model_format, runtime in found.items():
                chosen = chosen.with_format(model_format, runtime.id)
            self._write(chosen)
            return found

    def rollback_targets(self, model_format: str | None = None) -> dict[str, Runtime]:
        """By format, where `rollback` would go. Raises NotFoundError when there is nothing to go back to."""
        chosen = self.selection()
        found = {}
        for name in (model_format,) if model_format is not None else sorted(chosen.previous):
            history = chosen.previous.get(name, ())
            whole = {r.id: r for r in map(self.find, history) if r is not None and health.quick(r.directory).ok}
            if (target := chosen.last_good(name, whole)) is not None:
                found[name] = whole[target]
        if not found:
            raise self._nothing_to_return_to(model_format, chosen)
        return found

    def rollback(self, model_format: str | None = None) -> dict[str, Runtime]:
        """Return a format, or every format, to its last selection that worked; returns what serves it now.

        Worked has what loaded a model here, is still whole and is not held. Raises NotFoundError when there is none.
        """
        with self._changing("rolling back"):
            found, chosen = self.rollback_targets(model_format), self.selection()
            for name, runtime in found.items():
                chosen = chosen.rolled_back(name, runtime.id)
            self._write(chosen)
            return found

    def fallback(self, runtime: Runtime, model_format: str) -> Runtime | None:
        """What to try when `runtime`, selected for a format, did not load a model: the last selection that worked.

        None when `runtime` itself has worked before, so that it is not to blame, or when there is nothing else.
        """
        chosen = self.selection()
        if chosen.formats.get(model_format) != runtime.id or runtime.id in chosen.worked.get(model_format, ()):
            return None
        try:
            return self.rollback_targets(model_format)[model_format]
        except NotFoundError:
            return None

    def fall_back(self, runtime: Runtime, good: Runtime, model_format: str) -> None:
        """Return a format from `runtime` to `good`, and hold `runtime`: no update takes it again."""

        def change(chosen: Selection) -> Selection:
            if chosen.formats.get(model_format) != runtime.id:  # somebody chose another meanwhile
                return chosen
            returned = chosen.rolled_back(model_format, good.id)
            return replace(returned, holds=_with(returned.holds, runtime.id))

        self._change(f"returning to {good.id}", change)

    def note_loaded(self, runtime: Runtime, model_format: str) -> None:
        """Remember that `runtime` loaded a model of a format, so that `rollback` may return to it.

        Writes once for each runtime and format, and never raises: a home that cannot be written stops no model.
        """
        try:
            if runtime.id not in self.selection().worked.get(model_format, ()):
                self._change("noting a load", lambda s: s.with_worked(model_format, runtime.id))
        except StoreError:
            return

    def pin(self, runtime_id: str) -> None:
        """Have updates and clean-up leave this runtime alone."""
        self._change(f"pinning {runtime_id}", lambda s: replace(s, pins=_with(s.pins, runtime_id)))

    def unpin(self, runtime_id: str) -> None:
        self._change(f"unpinning {runtime_id}", lambda s: replace(s, pins=_without(s.pins, runtime_id)))

    def hold(self, release_id: str) -> None:
        """Never choose this version automatically, be it installed or not."""
        self._change(f"holding {release_id}", lambda s: replace(s, holds=_with(s.holds, release_id)))

    def unhold(self, release_id: str) -> None:
        self._change(f"unholding {release_id}", lambda s: replace(s, holds=_without(s.holds, release_id)))

    # --- what changes ----------------------------------------------------------------------------------------------

    def use(self, runtime: Runtime) -> Use:
        """Hold `runtime` for this process: until the use is released or the process ends, nobody removes it.

        Raises NotFoundError when it is gone. In a home that cannot be written the use holds nothing and says nothing.
        """
        try:
            with self._changing(f"using {runtime.id}"):
                if self.find(runtime.id) is None:
                    raise NotFoundError(f"{runtime.id} is not installed", help=f"`paceline runtime get {runtime.id}`")
                uses.clean(self._uses(runtime.id))
                return uses.begin(self._uses(runtime.id))
        except StoreError:
            return uses.NOTHING_HELD

    def forget_ended_uses(self) -> None:
        """Delete what `ended_uses` names."""
        with self._changing("forgetting ended uses"):
            for folder in (self.home / "uses").glob("*"):
                uses.clean(folder)

    def protection(self, runtime: Runtime, chosen: Selection | None = None) -> str | None:
        """Why clean-up leaves `runtime` alone; None when nothing needs it."""
        chosen = chosen or self.selection()
        if used := self._why_not_removed(runtime.id, chosen):
            return used
        if runtime.linked is not None:
            return f"{runtime.id} is linked to {runtime.linked}"
        for name in runtime.formats:
            known = [r for r in chosen.previous.get(name, ()) if r == runtime.id or self.find(r) is not None]
            if chosen.last_good(name, known) == runtime.id:
                return f"{runtime.id} is what `paceline runtime rollback` would return {name} to"
        return None

    def remove(self, runtime: Runtime, *, force: bool = False) -> None:
        """Delete `runtime`. Raises InUseError for one that a process uses and, unless `force`, which unselects it,
        for one that is selected or pinned."""
        self._remove(runtime.id, lambda chosen: None if force else self._why_not_removed(runtime.id, chosen))

    def check_unused(self, runtime_id: str) -> None:
        """Raise InUseError, naming the processes, when one uses this runtime."""
        if pids := uses.holders(self._uses(runtime_id)):
            raise InUseError(
                f"{runtime_id} is in use by process {', '.join(map(str, pids))}",
                help="end that process, or unload the models it serves with this runtime, and try again",
            )

    def remove_unneeded(self, runtime: Runtime) -> None:
        """Delete `runtime` if `protection` names no reason against it; else raise InUseError with that reason."""
        self._remove(runtime.id, lambda chosen: self.protection(runtime, chosen))

    def remove_incomplete(self, name: str, *, force: bool = False) -> None:
        """Delete a folder among the runtimes that does not count as installed; otherwise as `remove`."""
        if self.find(name) is not None:
            raise InUseError(f"{name} is installed", help="another process mended it meanwhile")
        self._remove(name, lambda chosen: None if force else self._why_not_removed(name, chosen))

    def publish(self, staged: Path, runtime_id: str) -> Runtime:
        """Turn a finished folder of `staging`, manifest included, into an installed runtime.

        Raises InUseError when it would replace one that a process uses.
        """
        with self._changing(f"installing {runtime_id}"):
            self.check_unused(runtime_id)
            replaced = transaction.publish(staged, self.folder / runtime_id)
        if replaced is not None:
            transaction.discard(replaced)
        runtime = self.find(runtime_id)
        if runtime is None:
            raise StoreError(f"{self.folder / runtime_id} vanished after it was installed", help="install it again")
        return runtime

    @contextmanager
    def installing(self, progress: Progress = silent) -> Iterator[tuple[Path, ...]]:
        """Hold the home's install lock, which the system takes back from a process that dies, over a clean staging.

        Yields what was deleted to clean it.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.lock_file("install"))
        with transaction.explained("taking the install lock", self.home):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                progress(Phase.WAIT, message="another installation is under way, waiting for it")
                lock.acquire(poll_interval=0.1)
        try:
            with self._changing("healing the store"):
                pass
            yield transaction.sweep(self.staging)
        finally:
            lock.release()

    def lock_file(self, name: str) -> Path:
        """Where the lock `name` of this home lives; makes the folder."""
        folder = self.home / "locks"
        with transaction.explained("taking a lock", self.home):
            transaction.make_folder(folder)
        return folder / f"{name}.lock"

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

    def _usable(self, runtime: Runtime) -> Runtime:
        found = self.find(runtime.id)
        if found is None:
            raise NotFoundError(f"{runtime.id} is not installed", help=f"`paceline runtime get {runtime.id}`")
        state = health.quick(found.directory)
        if not state.ok:
            raise StoreError(
                f"{runtime.id} is {state.state}: {'; '.join(state.problems)}",
                help=f"`paceline runtime repair {runtime.id}`"
                if found.linked is None
                else f"mend {found.linked}, or link it again from where it is now",
            )
        return found

    def _select(self, runtime: Runtime, formats: tuple[str, ...]) -> tuple[str, ...]:
        self._usable(runtime)
        before = after = self.selection()
        for name in formats:
            after = after.with_format(name, runtime.id)
        self._write(after)
        return tuple(f for f in formats if before.formats.get(f) != runtime.id)

    def _nothing_to_return_to(self, model_format: str | None, chosen: Selection) -> NotFoundError:
        names = [model_format] if model_format is not None else sorted(chosen.previous)
        earlier = [r for name in names for r in chosen.previous.get(name, ())]
        what = f"of {model_format} " if model_format is not None else ""
        if not earlier:
            return NotFoundError(
                f"no earlier selection {what}is known, so there is nothing to return to",
                help="`paceline runtime ls` shows what is installed, `paceline runtime select` chooses",
            )
        reasons = ", ".join(f"{r} {self._why_not_returned_to(r, names, chosen)}" for r in dict.fromkeys(earlier))
        return NotFoundError(
            f"no earlier selection {what}can be returned to: {reasons}",
            help="choose one all the same with `paceline runtime select`",
        )

    def _why_not_returned_to(self, runtime_id: str, formats: list[str], chosen: Selection) -> str:
        if self.find(runtime_id) is None:
            return "is not installed"
        if runtime_id in chosen.holds:
            return "is held"
        if not health.quick(self.folder / runtime_id).ok:
            return "is broken"
        return "never loaded a model"

    def _why_not_removed(self, runtime_id: str, chosen: Selection) -> str | None:
        if chosen.uses(runtime_id):
            what = ", ".join((*chosen.formats_of(runtime_id), *(f"model {m}" for m in chosen.models_of(runtime_id))))
            return f"{runtime_id} is selected for {what}"
        return f"{runtime_id} is pinned" if runtime_id in chosen.pins else None

    def _remove(self, name: str, forbidden: Callable[[Selection], str | None]) -> None:
        with self._changing(f"removing {name}"):
            self.check_unused(name)
            chosen = self.selection()
            if reason := forbidden(chosen):
                raise InUseError(
                    reason, help="select another runtime or unpin it first, or remove this one with --force"
                )
            if not (self.folder / name).exists():
                raise NotFoundError(f"{name} was removed by another process")
            # Unselected first: a crash between the two leaves an installed runtime, not a dangling selection.
            self._write(chosen.without(name))
            grave = transaction.bury(self.folder / name, self.staging)
            transaction.discard(self._uses(name))
        transaction.discard(grave)

    def _change(self, doing: str, change: Callable[[Selection], Selection]) -> None:
        with self._changing(doing):
            self._write(change(self.selection()))

    def _write(self, chosen: Selection) -> None:
        """Write the selection if it is another one. Under the store's lock."""
        if chosen != self.selection():
            transaction.write_json(self._selection_file, selection.to_json(chosen))

    @contextmanager
    def _changing(self, doing: str) -> Iterator[None]:
        """Hold the store's lock, having mended what an ended process left half done under it."""
        from filelock import FileLock

        path = self.lock_file("store")
        with transaction.explained(doing, self.home), FileLock(path):
            transaction.recover(self.folder, self.staging)
            transaction.sweep_unfinished(self._selection_file)
            yield


def _with(ids: tuple[str, ...], added: str) -> tuple[str, ...]:
    return ids if added in ids else (*ids, added)


def _without(ids: tuple[str, ...], removed: str) -> tuple[str, ...]:
    return tuple(i for i in ids if i != removed)
