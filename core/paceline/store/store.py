"""What is installed and what is selected, under the home folder:

    runtimes/<id>/           an installed runtime, never changed: env/, requirements.txt, build.log,
                             files.json (size and sha256 of every file), manifest.json (written last);
                             or a link to an environment elsewhere, which is a manifest alone
    selection.json           which runtime serves a model format, and what served it before (see `selection`)
    uses/<id>/               which processes use a runtime, and when it was used last (see `uses`);
    uses/plugins.<number>/   the same of a generation of plugins (see `plugin_folder`)
    staging/  locks/  logs/  installs under way, their locks, the logs of failed ones

A runtime counts when its manifest is there and readable; `health` says whether the rest of it is, too.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from paceline.errors import InUseError, NotFoundError, StoreError
from paceline.progress import Phase, silent
from paceline.store import selection, transaction, uses
from paceline.store.locks import locked
from paceline.store.reading import REMOVE_ALL_THE_SAME, StoreReader
from paceline.store.selection import Hold, Selection, StandIn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from paceline.progress import Progress
    from paceline.store.uses import Use
    from paceline.types import Runtime


class Store(StoreReader):
    """The runtimes under one home folder, read and changed. Every change is made under the store's lock."""

    # --- which one is used -----------------------------------------------------------------------------------------

    def select(self, runtime: Runtime) -> tuple[str, ...]:
        """Let `runtime` serve every format it can; returns the formats whose runtime changed.

        What a rollback left is no longer held then.
        """
        with self._changing("selecting a runtime"):
            return self._select(runtime, runtime.formats, by_hand=True)

    def select_instead(self, old: Runtime, new: Runtime, formats: Collection[str]) -> tuple[str, ...]:
        """Let `new` serve those of the `formats` that `old` serves now; returns these.

        None when `old` is pinned, or `new` is held: somebody may have said so since it was decided.
        """
        with self._changing("selecting a runtime"):
            chosen = self.selection()
            if old.id in chosen.pins or new.id in chosen.holds:
                return ()
            return self._select(new, tuple(f for f in chosen.formats_of(old.id) if f in formats and f in new.formats))

    def select_where_none(self, runtime: Runtime) -> tuple[str, ...]:
        """Let `runtime` serve the formats that have no installed runtime yet; returns those formats. Not a held one."""
        with self._changing("selecting a runtime"):
            if runtime.id in self.selection().holds:
                return ()
            return self._select(runtime, tuple(f for f in runtime.formats if self.selected(f) is None))

    def select_for_model(self, runtime: Runtime, model_id: str) -> None:
        """Let `runtime` serve one model, whatever serves the others of its format."""
        self._change(f"selecting a runtime for {model_id}", lambda s: s.with_model(model_id, self.usable(runtime).id))

    def unselect_model(self, model_id: str) -> None:
        """Let the runtime of its format serve a model again."""
        self._change(f"unselecting the runtime of {model_id}", lambda s: s.with_model(model_id, None))

    def unselect(self, model_format: str) -> None:
        """Let nothing serve a format; `rollback` can return to what did."""
        self._change(f"unselecting the runtime of {model_format}", lambda s: s.without_format(model_format))

    def select_latest(self) -> dict[str, Runtime]:
        """Move every selection to what `latest` says; returns what changed."""
        with self._changing("selecting the latest runtimes"):
            found, chosen = self.latest(), self.selection()
            for model_format, runtime in found.items():
                chosen = chosen.with_format(model_format, runtime.id)
            self._write(chosen)
            return found

    def rollback(self, model_format: str | None = None) -> dict[str, Runtime]:
        """Return a format, or every format, to its last selection that worked; returns what serves it now.

        Worked has what loaded a model here; where nothing has, the newest that passed its smoke test is taken. What is
        broken or held is passed over. Raises NotFoundError when there is nothing to return to.
        What is left is held where it is newer (see `Selection.to_hold`), until it is selected by hand.
        """
        with self._changing("rolling back"):
            found, chosen = self.rollback_targets(model_format), self.selection()
            for name, runtime in found.items():
                if (left := chosen.to_hold(name, runtime.id)) is not None:
                    why = f"a rollback returned {name} from it to {runtime.id}"
                    chosen = chosen.with_hold(left, Hold(why, _now(), until_selected=True))
                chosen = chosen.rolled_back(name, runtime.id)
            self._write(chosen)
            return found

    def give_back(self, runtime: Runtime, good: Runtime, model_format: str, reason: str) -> None:
        """Return a format from `runtime` to `good`, and hold `runtime` for that reason: no update takes it again."""

        def change(chosen: Selection) -> Selection:
            if chosen.formats.get(model_format) != runtime.id:  # somebody chose another meanwhile
                return chosen
            return chosen.rolled_back(model_format, good.id).with_hold(runtime.id, Hold(reason, _now()))

        self._change(f"returning to {good.id}", change)

    def stand_in(self, good: Runtime, runtime: Runtime, model_format: str, model_id: str, reason: str) -> StandIn:
        """Let `good` serve one model for as long as `runtime`, which did not load it, is selected for that model.

        Where `runtime` itself stood in for another one, `good` does now. Returns what was noted.
        """
        with self._changing(f"serving {model_id} with {good.id}"):
            chosen = self.selection()
            before = chosen.stand_in(model_id)
            instead_of = before.instead_of if before is not None and before.runtime == runtime.id else runtime.id
            found = StandIn(good.id, instead_of, model_format, reason, _now())
            self._write(chosen.with_stand_in(model_id, found))
            return found

    def note_loaded(self, runtime: Runtime, model_format: str, model_id: str | None = None) -> None:
        """Remember that `runtime` loaded a model, so that `rollback` and `fallbacks` may return to it.

        Writes once for each runtime and format, and each time another runtime than before loads the model. Never
        raises: a home that cannot be written stops no model.
        """

        def change(chosen: Selection) -> Selection:
            if runtime.id not in chosen.worked.get(model_format, ()):
                chosen = chosen.with_worked(model_format, runtime.id)
            if model_id is not None and chosen.loaded.get(model_id) != runtime.id:
                chosen = chosen.with_loaded(model_id, runtime.id)
            return chosen

        try:
            if change(known := self.selection()) != known:
                self._change("noting a load", change)
        except StoreError:
            return

    def pin(self, runtime_id: str) -> None:
        """Have updates and clean-up leave this runtime alone."""
        self._change(f"pinning {runtime_id}", lambda s: s.with_pin(runtime_id))

    def unpin(self, runtime_id: str) -> None:
        self._change(f"unpinning {runtime_id}", lambda s: s.without_pin(runtime_id))

    def hold(self, release_id: str, reason: str | None = None) -> None:
        """Never choose this version automatically, be it installed or not."""
        self._change(f"holding {release_id}", lambda s: s.with_hold(release_id, Hold(reason, _now())))

    def unhold(self, release_id: str) -> None:
        self._change(f"unholding {release_id}", lambda s: s.without_hold(release_id))

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

    def use_plugins(self, generation: int) -> Use:
        """Hold a generation of plugins for this process, as `use` holds a runtime; a home without it is no error."""
        folder = self._uses_of_plugins(generation)
        try:
            with self._changing("using plugins"):
                if not self._plugins(generation).exists():
                    return uses.NOTHING_HELD
                uses.clean(folder)
                return uses.begin(folder)
        except StoreError:
            return uses.NOTHING_HELD

    def remove_plugins(self, generation: int) -> bool:
        """Delete a generation of plugins; False, and nothing is deleted, when a process uses it or it is gone."""
        folder = self._plugins(generation)
        with self._changing("removing plugins"):
            if self.plugins_in_use_by(generation) or not folder.exists():
                return False
            grave = transaction.bury(folder, self.staging)
            transaction.discard(self._uses_of_plugins(generation))
        if grave is not None:
            transaction.discard(grave)
        return True

    def forget_ended_uses(self) -> None:
        """Delete what `ended_uses` names."""
        with self._changing("forgetting ended uses"):
            for folder in (self.home / "uses").glob("*"):
                uses.clean(folder)

    def remove(self, runtime: Runtime, *, force: bool = False) -> None:
        """Delete `runtime`. Raises InUseError for one that a process uses and, unless `force`, which unselects it,
        for one that is selected or pinned."""
        self._remove(runtime.id, lambda chosen: None if force else self._why_not_removed(runtime.id, chosen))

    def remove_unneeded(self, runtime: Runtime) -> None:
        """Delete `runtime` if `protection` names no reason against it; else raise InUseError with that reason."""
        self._remove(runtime.id, lambda chosen: self.protection(runtime, chosen))

    def remove_incomplete(self, name: str, *, force: bool = False) -> None:
        """Delete a folder among the runtimes that does not count as installed; otherwise as `remove`."""
        self._remove_incomplete(name, lambda chosen: None if force else self._why_not_removed(name, chosen))

    def remove_unneeded_incomplete(self, name: str) -> None:
        """The same if `protection_of_incomplete` names no reason against it; else raise InUseError with that reason."""
        self._remove_incomplete(name, lambda chosen: self.protection_of_incomplete(name, chosen))

    def publish(self, staged: Path, runtime_id: str) -> Runtime:
        """Turn a finished folder of `staging`, manifest included, into an installed runtime.

        Raises InUseError when it would replace one that a process uses, and as `check_one_mount`.
        """
        self.check_one_mount()
        with self._changing(f"installing {runtime_id}"):
            self.check_unused(runtime_id)
            replaced = transaction.publish(staged, self.folder / runtime_id)
        if replaced is not None:
            transaction.discard(replaced)
        runtime = self.find(runtime_id)
        if runtime is None:
            raise StoreError(f"{self.folder / runtime_id} vanished after it was installed", help="install it again")
        return runtime

    def check_one_mount(self) -> None:
        """Raise StoreError when no rename could take a folder from `staging` to where the runtimes are."""
        with transaction.explained("looking at where runtimes are installed", self.home):
            for folder in (self.staging, self.folder):
                transaction.make_folder(folder)
            if not transaction.is_one_mount(self.staging, self.folder):
                raise StoreError(
                    f"nothing can be installed: runtimes are made in {_lies(self.staging)} and appear by one rename in "
                    f"{_lies(self.folder)}, and the system renames nothing from the one to the other",
                    help=f"let both be plain folders of {self.home}; to have runtimes on another disk, move the whole "
                    "home there and set PACELINE_HOME",
                )

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

    def _select(self, runtime: Runtime, formats: tuple[str, ...], *, by_hand: bool = False) -> tuple[str, ...]:
        self.usable(runtime)
        before = after = self.selection()
        if by_hand:
            after = after.chosen_again(runtime.id)
        for name in formats:
            after = after.with_format(name, runtime.id)
        self._write(after)
        return tuple(f for f in formats if before.formats.get(f) != runtime.id)

    def _plugins(self, generation: int) -> Path:
        from paceline import plugin_folder

        return plugin_folder.generation(self.home, generation)

    def _remove_incomplete(self, name: str, forbidden: Callable[[Selection], str | None]) -> None:
        if self.find(name) is not None:
            raise InUseError(f"{name} is installed", help="another process mended it meanwhile")
        self._remove(name, forbidden)

    def _remove(self, name: str, forbidden: Callable[[Selection], str | None]) -> None:
        with self._changing(f"removing {name}"):
            self.check_unused(name)
            chosen = self.selection()
            if reason := forbidden(chosen):
                raise InUseError(reason, help=REMOVE_ALL_THE_SAME)
            if not (self.folder / name).exists():
                raise NotFoundError(f"{name} was removed by another process")
            # Unselected first: a crash between the two leaves an installed runtime, not a dangling selection.
            self._write(chosen.without(name))
            grave = transaction.bury(self.folder / name, self.staging)
            transaction.discard(self._uses(name))
        if grave is not None:
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
        path = self.lock_file("store")
        with transaction.explained(doing, self.home), locked(path):
            transaction.recover(self.folder, self.staging)
            transaction.sweep_unfinished(self._selection_file)
            yield


def _lies(folder: Path) -> str:
    there = folder.resolve()
    return str(folder) if there == folder.absolute() else f"{folder} ({there})"


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
