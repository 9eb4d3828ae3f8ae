"""Third-party engines as packages under the home: install, remove, update, the host unharmed whatever they are.

    resolve beside the host's own packages -> fetch wheels, unpack them, run nothing -> read what they claim (and ask)
    -> load them once in a process of their own -> one rename of plugins.json

A change is made in a staging folder. Killed at any moment, what was in force still is.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from paceline import paths
from paceline.errors import InstallError, NotFoundError, PluginError, UsageError
from paceline.manager.local_packages import is_path, package_at
from paceline.manager.plugin_generations import sweep
from paceline.manager.plugin_trial import Trial, try_plugins
from paceline.packages import overlay
from paceline.packages.environment import build_wheel
from paceline.packages.wheels import read_wheel
from paceline.plugin_folder import Held, Request, State, generation, packages, python_version, read_state, state_file
from paceline.plugin_folder import to_json as state_json
from paceline.progress import Phase, silent
from paceline.store import transaction
from paceline.types import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from paceline.progress import Progress
    from paceline.store import Store

GROUP, ENGINES = "paceline", "paceline.engines"


@dataclass(frozen=True)
class Change:
    """A generation that is ready to be tried and put in force; nothing of it has run."""

    before: State
    after: State
    staged: Path

    @property
    def added(self) -> tuple[Held, ...]:
        """What is new, and what comes in another version or from another file."""
        had = {(p.name, p.version, p.sha256) for p in self.before.packages}
        return tuple(p for p in self.after.packages if (p.name, p.version, p.sha256) not in had)

    @property
    def gone(self) -> tuple[Held, ...]:
        """What is not there any more, or not in this version."""
        has = {(p.name, p.version, p.sha256) for p in self.after.packages}
        return tuple(p for p in self.before.packages if (p.name, p.version, p.sha256) not in has)


Confirm = Callable[[Change], bool]
"""Asked with what is known before anything of it runs; False leaves everything as it is."""


def install(
    wanted: Sequence[str], store: Store, *, cache: Path, confirm: Confirm, progress: Progress = silent
) -> tuple[Change, Trial] | None:
    """Install distributions: requirements (PEP 508), wheels, or folders of source. None when `confirm` says no.

    A folder's build script runs before anything is asked. Raises UsageError, InstallError or PluginError; then nothing
    has changed.
    """
    with _changing(store, progress) as (before, staged):
        requests = dict(before.requests)
        for text in wanted:
            name, request = _request(text, staged, cache, progress)
            requests[name] = request
        return _switch(before, requests, {*requests} - {*before.requests}, staged, store, cache, confirm, progress)


def update(
    names: Sequence[str], store: Store, *, cache: Path, confirm: Confirm, progress: Progress = silent
) -> tuple[Change, Trial] | None:
    """Move plugins, or all, to the newest versions that their requirements and this host allow. Raises as `install`.

    What came from this machine stays as it is, but is installed anew for another Python.
    """
    with _changing(store, progress) as (before, staged):
        chosen = [_known(name, before) for name in names] or list(before.requests)
        upgraded = set(chosen) if names else {*chosen, *(p.name for p in before.packages)}
        return _switch(before, dict(before.requests), upgraded, staged, store, cache, confirm, progress)


def remove(names: Sequence[str], store: Store, *, confirm: Confirm, progress: Progress = silent) -> Change | None:
    """Remove plugins, and what only they needed; nothing is fetched, and nothing runs.

    Raises NotFoundError for one that was not installed here.
    """
    with _changing(store, progress) as (before, staged):
        leaving = {_known(name, before) for name in names}
        requests = {name: request for name, request in before.requests.items() if name not in leaving}
        current = generation(store.home, before.generation)
        found = _distributions(packages(current))
        stay = _needed(requests, found)
        for name in stay:
            _copy_distribution(found[name], packages(current), packages(staged))
        _keep_files(current, requests, before, staged)
        held = tuple(package for package in before.packages if package.name in stay)
        change = Change(before, State(before.generation + 1, before.python, requests, held), staged)
        if not confirm(change):
            return None
        progress(Phase.PUBLISH)
        return _put_in_force(change, store)


def _switch(
    before: State,
    requests: dict[str, Request],
    upgrade: set[str],
    staged: Path,
    store: Store,
    cache: Path,
    confirm: Confirm,
    progress: Progress,
) -> tuple[Change, Trial] | None:
    current = generation(store.home, before.generation)
    host = overlay.host_packages(packages(current))
    for name in requests:
        if name in host:
            raise UsageError(
                f"{name} {host[name].version} is of Paceline's own environment",
                help="update or remove it there, with what installed Paceline",
            )
    _keep_files(current, requests, before, staged)
    locked: tuple[overlay.Locked, ...] = ()
    if requests:
        progress(Phase.SEARCH, message="finding what fits beside this Paceline")
        lines = [_line(name, request, staged) for name, request in requests.items()]
        locked = overlay.resolve(lines, host, staged, cache=cache, upgrade=upgrade)
    target = packages(staged)
    progress(Phase.PACKAGES, 0, len(locked))
    overlay.install(locked, target, cache=cache)
    progress(Phase.PACKAGES, len(locked), len(locked))
    found = _distributions(target)
    _check_modules(found, current.parent)
    held = tuple(_describe(each, found[each.name]) for each in locked)
    _check_claims(requests, held)
    after = State(before.generation + 1, python_version(), requests, held)
    change = Change(before, after, staged)
    if not confirm(change):
        return None
    progress(Phase.CHECK, message="loading the plugins once")
    trial = try_plugins(target, held, change.added)
    progress(Phase.PUBLISH)
    return _put_in_force(change, store), trial


def _put_in_force(change: Change, store: Store) -> Change:
    final = generation(store.home, change.after.generation)
    if final.exists():  # of a change that ended before it was put in force
        transaction.delete(final)
    transaction.publish(change.staged, final)
    transaction.write_json(state_file(store.home), state_json(change.after))
    sweep(store)
    return replace(change, staged=final)


@contextmanager
def _changing(store: Store, progress: Progress) -> Iterator[tuple[State, Path]]:
    """Hold the lock of the plugins, over what is in force and an empty staging folder."""
    from filelock import FileLock, Timeout

    lock = FileLock(store.lock_file("plugins"))
    with transaction.explained("changing the plugins", store.home):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(Phase.WAIT, message="another process changes the plugins, waiting for it")
            lock.acquire(poll_interval=0.1)
        try:
            folder = generation(store.home, 0).parent
            for leftover in folder.glob("staging.*"):
                transaction.discard(leftover)
            transaction.sweep_unfinished(state_file(store.home))
            staged = folder / f"staging.{secrets.token_hex(4)}"
            transaction.make_folder(staged / "wheels")
            try:
                yield read_state(store.home), staged
            finally:
                transaction.discard(staged)
        finally:
            lock.release()


def _request(text: str, staged: Path, cache: Path, progress: Progress) -> tuple[str, Request]:
    if not is_path(text) or "://" in text:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise UsageError(
                f"{text!r} is no requirement: {error}",
                help="give `paceline-echo`, `paceline-echo==1.0`, or a path",
                param="names",
            ) from None
        if requirement.url is not None:
            raise UsageError(
                f"{text!r} names an address, whose content nothing vouches for",
                help="fetch the wheel, check it, and give its path",
            )
        return str(canonicalize_name(requirement.name)), Request(text)
    path = paths.given(text)
    name = package_at(path)
    built = staged / "built"
    if path.is_dir():
        transaction.make_folder(built)
        wheel = read_wheel(build_wheel(path, name, Recipe(), built, cache=cache, progress=progress))
    else:
        wheel = read_wheel(path)
    if not wheel.fits_here:
        raise InstallError(
            f"{wheel.path.name} does not fit this machine and this Python", help="build the wheel here, or for it"
        )
    if wheel.startup_files:
        raise InstallError(
            f"{wheel.path.name} brings {wheel.startup_files[0]}, code that would run at every start of Python",
            help="ask the plugin's author for a wheel without it",
        )
    transaction.step("copy", staged / "wheels" / wheel.path.name)
    shutil.copyfile(wheel.path, staged / "wheels" / wheel.path.name)
    transaction.delete(built)
    return name, Request(name, wheel.path.name, str(path))


def _keep_files(current: Path, requests: Mapping[str, Request], before: State, staged: Path) -> None:
    """Take over the wheels that came from this machine, and the lock, which the next solution keeps to."""
    for request in requests.values():
        if request.wheel and not (staged / "wheels" / request.wheel).exists():
            transaction.step("copy", staged / "wheels" / request.wheel)
            shutil.copyfile(current / "wheels" / request.wheel, staged / "wheels" / request.wheel)
    if before.fits and (current / overlay.LOCK).exists():
        transaction.step("copy", staged / overlay.LOCK)
        shutil.copyfile(current / overlay.LOCK, staged / overlay.LOCK)


def _line(name: str, request: Request, staged: Path) -> str:
    return f"{name} @ {(staged / 'wheels' / request.wheel).as_uri()}" if request.wheel else request.requirement


def _known(name: str, state: State) -> str:
    normalized = str(canonicalize_name(name))
    if normalized not in state.requests:
        there = ", ".join(sorted(state.requests)) or "none"
        raise NotFoundError(
            f"no plugin {name!r} was installed by Paceline (installed: {there})",
            help="`paceline plugins ls` shows every plugin and where it came from",
            param="names",
        )
    return normalized


def _describe(locked: overlay.Locked, distribution: metadata.Distribution) -> Held:
    entry_points = distribution.entry_points
    engines = tuple(sorted(ep.name for ep in entry_points if ep.group == ENGINES))
    sizes = [Path(str(file.locate())) for file in distribution.files or ()]
    return Held(
        name=locked.name,
        version=locked.version,
        sha256=locked.sha256,
        size_bytes=sum(path.stat().st_size for path in sizes if path.is_file()),
        entry_points={ep.name: ep.value for ep in entry_points if ep.group == GROUP},
        engines=engines or None,
    )


def _check_modules(found: Mapping[str, metadata.Distribution], ours: Path) -> None:
    for name, module, owner in overlay.taken_modules(found.values(), ours):
        raise InstallError(
            f"{name} brings a module named {module}, which is {owner}",
            help="two modules of one name cannot both be imported: ask the plugin's author to rename it",
        )


def _check_claims(requests: Mapping[str, Request], held: Sequence[Held]) -> None:
    for package in held:
        if package.name in requests and not package.entry_points:
            raise PluginError(
                f"{package.name} {package.version} is no plugin: it has no entry point of the group {GROUP!r}",
                help="docs/writing-an-engine-plugin.md says what one has",
            )


def _distributions(folder: Path) -> dict[str, metadata.Distribution]:
    return {str(canonicalize_name(d.name)): d for d in metadata.distributions(path=[str(folder)])}


def _needed(roots: Iterable[str], found: Mapping[str, metadata.Distribution]) -> set[str]:
    """Of the distributions `found`, those that `roots` are or need, as their metadata says."""
    needed: set[str] = set()
    open_ends = [name for name in roots if name in found]
    while open_ends:
        name = open_ends.pop()
        if name not in needed:
            needed.add(name)
            wanted = {str(canonicalize_name(Requirement(text).name)) for text in found[name].requires or ()}
            open_ends += wanted & found.keys()
    return needed


def _copy_distribution(distribution: metadata.Distribution, source: Path, target: Path) -> None:
    for file in distribution.files or ():
        path = Path(str(file.locate()))
        if path.is_file() and path.is_relative_to(source):
            copy = transaction.make_folder((target / path.relative_to(source)).parent) / path.name
            transaction.step("copy", copy)
            shutil.copyfile(path, copy)
