"""File-system steps that a crash cannot leave half done, and the one seam that every such step passes.

A change becomes visible by one rename; everything before it happens in a staging folder on the same file system,
which may be deleted whenever nobody installs. Each step is announced before it is taken: `observed` lets a caller
count them, fail one, or end the process at one.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from paceline import refusals
from paceline.errors import StoreError
from paceline.store.manifest import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterator


class Observer(Protocol):
    """Called before each step with its name and the path it is about; what it raises is raised by the step."""

    def __call__(self, step: str, path: Path) -> None: ...


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Have every step of this process announced to `observer` while the block runs."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def step(name: str, path: Path) -> None:
    """Announce a step that something else takes, such as a program that writes into a staging folder."""
    if _observer is not None:
        _observer(name, path)


_observer: Observer | None = None


def make_folder(path: Path) -> Path:
    """Make `path` and the folders above it where they are missing."""
    if not path.is_dir():
        step("make folder", path)
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file where nobody looks yet, such as in a staging folder."""
    step("write", path)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object, *, private: bool = False) -> None:
    """Replace `path` with `value` as JSON: after a crash the file holds the old or the new text, whole.

    `private`: as `replace_file` has it.
    """
    replace_file(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode(), private=private)


def replace_file(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace `path` with `data`: after a crash the file holds the old or the new bytes, all of them.

    Who may read it is what the user's umask says; with `private` its owner alone.
    """
    make_folder(path.parent)
    step("make file", path)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    handle = os.open(temporary, _NEW_FILE, 0o600 if private else 0o666)  # less the umask, which the system takes off
    try:
        with os.fdopen(handle, "wb") as file:
            step("write", temporary)
            file.write(data)
            file.flush()
            step("sync", temporary)
            os.fsync(file.fileno())
        step("rename", path)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def settle(file: Path, final: Path) -> None:
    """Give a file that is whole its final name; after a crash that name has all of it, or what it had before."""
    step("sync", file)
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())
    step("rename", final)
    file.replace(final)
    sync_folder(final.parent)


def publish(staged: Path, final: Path) -> Path | None:
    """Make a finished folder visible under its final name. Whatever had that name is replaced in the same instant.

    Returns where the replaced one lies, for `discard`; None when nothing of it is left. Where the system cannot
    exchange two folders, a crash between the two renames is undone by `recover`. Where it does not rename the replaced
    one at all, such as one that a container's image brought, that is deleted where it is, its manifest first, and a
    crash before the new one has the name is made good by `recover`.
    """
    make_folder(final.parent)
    if not final.exists():
        step("rename", final)
        staged.rename(final)
        sync_folder(final.parent)
        return None
    try:
        return _trade(staged, final)
    except OSError as error:
        if not _is_immovable(error, final, staged.parent):
            raise
    _succeed(staged, final)
    return None


def bury(folder: Path, staging: Path) -> Path | None:
    """Make a folder disappear by one rename into `staging`; returns where it lies, for `discard`.

    Where the system does not rename it (see `publish`), it disappears with its manifest, and the rest of it is deleted
    at once, or by `recover` after a crash; returns None.
    """
    make_folder(staging)
    grave = staging / f"{_REMOVED}{os.urandom(4).hex()}.{folder.name}"
    try:
        step("rename", folder)
        folder.rename(grave)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        sync_folder(folder.parent)
        return grave
    notice = staging / f"{_REMOVING}{os.urandom(4).hex()}.{folder.name}"
    step("make file", notice)
    notice.touch()
    delete(folder / MANIFEST)
    _delete_rest(folder, notice)
    return None


def half_gone(staging: Path) -> frozenset[str]:
    """The names of the folders that are being deleted in place, or were when their process ended. Reads only."""
    return frozenset(_name_in(path) for prefix in (_REMOVING, _HEIR) for path in staging.glob(f"{prefix}*"))


def recover(folder: Path, staging: Path) -> None:
    """Bring to an end in `folder` what a crash during `publish` or `bury` broke off."""
    for grave in staging.glob(f"{_REPLACED}*"):
        final = folder / _name_in(grave)
        if final.exists():
            _give_up(grave)
            continue
        step("rename", final)
        grave.rename(final)
        sync_folder(folder)
    for heir in staging.glob(f"{_HEIR}*"):
        final = folder / _name_in(heir)
        delete(final / MANIFEST)
        _inherit(heir, final)
    for notice in staging.glob(f"{_REMOVING}*"):
        half = folder / _name_in(notice)
        if (half / MANIFEST).exists():  # it ended before anything was deleted
            discard(notice)
        else:
            _delete_rest(half, notice)


def is_one_mount(a: Path, b: Path) -> bool:
    """Whether the system could rename what is in the folder `a` into the folder `b`, as far as where they lie decides.

    Nothing is renamed: Linux says that two folders are of two mounts before it looks for what is to be renamed.
    """
    if a.stat().st_dev != b.stat().st_dev:
        return False
    absent = f"absent.{os.urandom(4).hex()}"
    try:
        os.rename(a / absent, b / absent)  # noqa: PTH104 - the very call that is tried
    except OSError as error:
        return error.errno != errno.EXDEV
    return True


def sweep_unfinished(path: Path) -> None:
    """Delete what a crash during `write_json(path)` left. Only one who alone may write `path` may call it."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        discard(leftover)


def discard(path: Path) -> None:
    """Delete a file or a folder that counts for nothing any more; what cannot be deleted is left for later."""
    with suppress(OSError):
        delete(path)


def discard_empty(folder: Path) -> None:
    """Delete a folder that may be empty; one that is not stays."""
    with suppress(OSError):
        _rmdir(folder)


def delete(path: Path) -> None:
    """Delete a file, a link or a folder with everything in it; what is already gone is fine.

    What a link leads to stays.
    """
    if path.is_symlink():  # which os.walk would follow
        _unlink(path)
        return
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            _unlink(Path(folder, name))
        for name in folders:
            child = Path(folder, name)
            if child.is_symlink():
                _unlink(child)
            else:
                _rmdir(child)
    if path.is_dir():
        _rmdir(path)
    else:
        _unlink(path)


def sweep(staging: Path) -> tuple[Path, ...]:
    """Delete what ended processes left in `staging`; returns what is gone. For the holder of the install lock alone."""
    try:
        leftovers = sorted(staging.iterdir())
    except FileNotFoundError:
        return ()
    for leftover in leftovers:
        discard(leftover)
    return tuple(leftover for leftover in leftovers if not os.path.lexists(leftover))


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can say so."""
    if sys.platform == "win32":  # folders cannot be opened there
        return
    step("sync", folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explained(doing: str, folder: Path, variable: str = refusals.HOME) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what could not be done, where and why.

    `folder` is what the environment variable `variable` could name instead.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise StoreError(
            f"{doing} failed at {where}: {error.strerror or error}",
            help=refusals.way_out(error, folder, variable) or f"see to {folder}, or set {variable} to another folder",
        ) from error


def _unlink(path: Path) -> None:
    step("delete", path)
    path.unlink(missing_ok=True)


def _rmdir(path: Path) -> None:
    step("delete", path)
    with suppress(FileNotFoundError):
        path.rmdir()


def _trade(staged: Path, final: Path) -> Path:
    """Let `staged` have the name `final`; returns where what had it lies. One that fails has changed nothing."""
    step("exchange", final)
    if _exchange(staged, final):
        sync_folder(final.parent)
        return staged
    grave = staged.parent / f"{_REPLACED}{os.urandom(4).hex()}.{final.name}"
    step("rename", grave)
    final.rename(grave)
    try:
        step("rename", final)
        staged.rename(final)
    except BaseException:
        grave.rename(final)
        raise
    sync_folder(final.parent)
    return _give_up(grave)


def _give_up(grave: Path) -> Path:
    """Have what was replaced come back no more, not even when what replaced it is removed; returns where it lies."""
    gone = grave.with_name(f"{_REMOVED}{grave.name.removeprefix(_REPLACED)}")
    step("rename", gone)
    return grave.rename(gone)


def _is_immovable(error: OSError, final: Path, staging: Path) -> bool:
    """Whether `error` says that the folder `final` cannot be renamed, though others could take its place.

    overlayfs says so of folders of its lower layers, unless it is mounted with `redirect_dir`.
    """
    return error.errno == errno.EXDEV and is_one_mount(staging, final.parent)


def _succeed(staged: Path, final: Path) -> None:
    """Delete the folder `final` where it is and let `staged` have its name."""
    heir = staged.parent / f"{_HEIR}{os.urandom(4).hex()}.{final.name}"
    step("rename", heir)
    staged.rename(heir)
    try:
        sync_folder(heir.parent)
        delete(final / MANIFEST)
    except OSError:
        heir.rename(staged)
        raise
    _inherit(heir, final)


def _inherit(heir: Path, final: Path) -> None:
    delete(final)
    step("rename", final)
    heir.rename(final)
    sync_folder(final.parent)


def _delete_rest(folder: Path, notice: Path) -> None:
    """Delete a folder that counts for nothing; what cannot be deleted is left for later, and with it the notice."""
    discard(folder)
    if not folder.exists():
        discard(notice)


def _name_in(left: Path) -> str:
    """The name of the folder that something in staging is about: a prefix and a token stand before it."""
    return left.name.split(".", 2)[2]


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_REPLACED = "replaced."
"""Prefix of the folder in staging that is being replaced; a token and its own name follow it, as they do the others."""
_REMOVED = "removed."
"""Of one that is removed, or was replaced, and only takes room."""
_HEIR = "heir."
"""Of one that gets its name when what has it is deleted."""
_REMOVING = "removing."
"""Of an empty file: the folder of the name is being deleted where it is."""
_NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM}
_EXCHANGE = 2
"""RENAME_EXCHANGE of linux/fs.h, and RENAME_SWAP of macOS's sys/stdio.h: both are 2."""
_AT_FDCWD = -100


def _exchange(a: Path, b: Path) -> bool:
    """Give two folders each other's name in one step; False where the system or the file system cannot."""
    import ctypes

    names = os.fsencode(a), os.fsencode(b)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            status = library.renamex_np(*names, _EXCHANGE)
        elif sys.platform == "linux":
            status = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE)
        else:
            return False
    except (AttributeError, TypeError):  # a C library without the call; no C library at all
        return False
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(b))
