"""`paceline bundle`: releases with all their packages in one file, for machines without a network."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paceline import network, paths
from paceline.cli import output
from paceline.cli.group import Group
from paceline.cli.policy import policy_options
from paceline.errors import AmbiguousError, IncompatibleError, NotFoundError, UnpinnedError, UsageError
from paceline.manager import inventory
from paceline.store import Store
from paceline.types import Compatibility, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.manager.bundles import Bundle
    from paceline.preferences import Policy
    from paceline.registry import Registry
    from paceline.types import Release, Runtime

_FILE = click.argument("file", type=click.Path(path_type=Path))


@click.group(
    cls=Group, epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing matches, or nothing that runs here."
)
def bundle() -> None:
    """Carry releases to machines without a network, in one file."""


@bundle.command("create")
@click.argument("queries", nargs=-1, required=True, metavar="RELEASE...")
@click.option("-o", "--output", "file", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--platform", "for_platform", help="Choose among the releases of this platform: `mac-arm64-metal`.")
@click.option("--python", "pythons", multiple=True, help="Versions of Python it is for (`3.12`); by default this one.")
@policy_options(without=("allow_unpinned",))
@output.json_option
def create(
    queries: Sequence[str],
    file: Path,
    for_platform: str | None,
    pythons: tuple[str, ...],
    policy: Policy,
    as_json: bool,
) -> None:
    """Write a bundle of the releases that each RELEASE means: the best for this machine, or those of --platform.

    As with `runtime get`, what is held, or younger than the minimum age, is taken where its version is named.
    A RELEASE that only an installed runtime has the name of, such as one made with a wheel of this machine, is bundled
    as it was installed, with that wheel.

    What is fetched for it is checked by the hashes of the registry. A bundle may be made on another kind of machine
    than the one it is for. What is built from source is built there, which takes a compiler, and no network.
    """
    from paceline import plugins
    from paceline.cli.progress import shown
    from paceline.manager.bundles import create as write

    for python in pythons:
        if not python.startswith("3.") or not python[2:].isdigit():
            raise UsageError(f"{python!r} is no version of Python", help="give it as `--python 3.12`")
    releases: dict[str, Release] = {}
    wheels: dict[str, Path] = {}
    store = Store(paths.home())
    known = inventory.known(store, plugins.load())
    for remark in known.remarks:
        output.note(str(remark))
    for query in queries:
        release, kept = _release(query, for_platform, policy, known, store)
        releases[release.id], wheels = release, wheels | kept
    with shown() as progress:
        made = write([*releases.values()], file, pythons or (_python(),), paths.cache(), progress, wheels=wheels)
    described = {"file": file, "size_bytes": file.stat().st_size, "sha256": _sha256(file), **_described(made, {})}
    if as_json:
        output.as_json_text(described)
        return
    click.echo(f"Wrote {file} ({output.size(described['size_bytes'])}, sha256 {described['sha256']})")
    click.echo(f"For Python {', '.join(made.pythons)}: {', '.join(r.id for r in made.releases)}")


@bundle.command("ls")
@_FILE
@output.json_option
def ls(file: Path, as_json: bool) -> None:
    """List what FILE holds and whether this machine can run it; every file in it is compared with its hash."""
    from paceline.manager.bundles import read_bundle

    found = read_bundle(file)
    found.check()
    verdicts = dict(_judged(found))
    if as_json:
        output.as_json_text(_described(found, verdicts))
        return
    click.echo(f"For Python {', '.join(found.pythons)}")
    rows = [[r.id, v.status.value, "" if v.ok else v.message] for r in found.releases if (v := verdicts[r.id])]
    output.table(["RELEASE", "VERDICT", ""], rows)
    click.echo()
    output.table(["FILE", "SIZE", "SHA256"], [[f.name, output.size(f.size), f.sha256] for f in found.listed])


@bundle.command("install")
@_FILE
@click.option("--allow-incompatible", is_flag=True, help="Install what this machine is said not to run.")
@output.json_option
def install(file: Path, allow_incompatible: bool, as_json: bool) -> None:
    """Install the releases of FILE that this machine can run. No request leaves the machine."""
    from paceline import plugins
    from paceline.cli.progress import shown
    from paceline.manager.bundles import read_bundle
    from paceline.manager.installation import install as make

    network.go_offline()
    found = read_bundle(file)
    found.check()
    releases = _that_run_here(found, allow_incompatible)
    loaded, store = plugins.load(), Store(paths.home())
    done = []
    for release in releases:
        with shown() as progress:
            done.append(make(release, store, loaded.engine(release.engine), progress, supply=found))
    chosen = store.selection()
    if as_json:
        output.as_json_text([{"id": r.id, "selected_for": chosen.formats_of(r.id), **output.plain(r)} for r in done])
        return
    for runtime in done:
        formats = ", ".join(f.upper() for f in chosen.formats_of(runtime.id))
        click.echo(f"Installed {runtime.id}{f', selected for {formats}' if formats else ''}")


def _release(
    query: str, for_platform: str | None, policy: Policy, known: Registry, store: Store
) -> tuple[Release, dict[str, Path]]:
    """The one release that a query means, of a platform or for this machine, and its wheels that no index has."""
    from paceline.manager.local_packages import carried
    from paceline.survey import known_survey
    from paceline.verdict import rank

    matching = [r for r in known.match(query) if for_platform in (None, r.platform)]
    if not matching and (installed := _installed(query, for_platform, store)):
        return carried(installed, known.releases)
    if not matching:
        where = f" for {for_platform}" if for_platform else ""
        raise NotFoundError(f"no release matches {query!r}{where}", help="`paceline runtime get --list` shows them all")
    names = sorted({r.name for r in matching})
    if for_platform is not None and len(names) > 1:
        raise AmbiguousError(
            f"{query!r} means several releases for {for_platform}: {', '.join(names)}", help="name one of them"
        )
    ranked = rank(matching, known_survey(), channel=policy.channel)
    if for_platform is not None or (len(names) == 1 and not any(verdict.ok for _, verdict in ranked)):
        ranked = [(release, _NOT_ASKED) for release in matching]
    try:
        choice = inventory.chosen(ranked, store, query, policy=policy)
    except UnpinnedError as error:
        error.help = "a bundle holds only what is pinned by hash: name another release"
        raise
    for remark in choice.remarks:
        output.say(remark)
    return choice.release, {}


_NOT_ASKED = Verdict(Compatibility.COMPATIBLE, "it is for another machine, which cannot be asked")


def _installed(query: str, for_platform: str | None, store: Store) -> Runtime | None:
    """The one installed runtime that a query means; None when there is none."""
    try:
        found = [r for r in store.match(query) if for_platform in (None, r.platform)]
    except NotFoundError:
        return None
    if len(found) > 1:
        names = ", ".join(r.id for r in found)
        raise AmbiguousError(f"{query!r} means several installed runtimes: {names}", help="name one of them")
    return found[0] if found else None


def _that_run_here(found: Bundle, allow_incompatible: bool) -> list[Release]:
    """Raises IncompatibleError that says why, when the bundle was made for other machines."""
    judged = _judged(found)
    releases = [r for r in found.releases if allow_incompatible or dict(judged)[r.id].ok]
    if not releases:
        first = judged[0][1]
        reasons = "; ".join(verdict.message for _, verdict in judged)
        raise IncompatibleError(f"{found.path} holds nothing that runs on this machine: {reasons}", help=first.help)
    if _python() not in found.pythons:
        raise IncompatibleError(
            f"{found.path} is for Python {', '.join(found.pythons)}; runtimes are built on Python {_python()} here",
            help=f"run Paceline with such a Python, or make the bundle with `--python {_python()}`",
        )
    return releases


def _judged(found: Bundle) -> list[tuple[str, Verdict]]:
    from paceline.survey import known_survey
    from paceline.verdict import rank

    return [(release.id, verdict) for release, verdict in rank(found.releases, known_survey())]


def _described(found: Bundle, verdicts: dict[str, Verdict]) -> dict[str, Any]:
    return {
        "pythons": found.pythons,
        "releases": [
            {"id": r.id, "platform": r.platform, **({"verdict": verdicts[r.id]} if verdicts else {})}
            for r in found.releases
        ],
        "files": [{"name": f.name, "sha256": f.sha256, "size_bytes": f.size} for f in found.listed],
    }


def _python() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _sha256(file: Path) -> str:
    import hashlib

    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
