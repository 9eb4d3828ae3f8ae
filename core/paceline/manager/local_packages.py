"""A release with one of its packages taken from this machine: a wheel, or a folder that a wheel is built of.

Everything else is the release's: its other packages, what they are built with, its engine, its smoke test. The version
says what it is: `0.3.36+local.1a2b3c4d` is 0.3.36 from a wheel whose sha256 begins so, and never the published 0.3.36.
"""

from __future__ import annotations

import os
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from paceline import query
from paceline.errors import IncompatibleError, InstallError, NotFoundError, UsageError
from paceline.manager.installation import recorded
from paceline.packages.builds import build_folder
from paceline.packages.environment import PACKAGES, build_wheel
from paceline.packages.locked import applies
from paceline.packages.wheels import read_wheel
from paceline.store.manifest import MANIFEST
from paceline.types import Package
from paceline.untrusted_json import read_object
from paceline.versions import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from packaging.version import Version

    from paceline.packages.wheels import Wheel
    from paceline.progress import Progress
    from paceline.types import Recipe, Release, Runtime


def is_path(text: str) -> bool:
    """Whether a text that could be a query means a place on this machine, as uv and pip tell the two apart."""
    return text.endswith(".whl") or text.startswith((".", "~")) or "/" in text or (os.sep != "/" and os.sep in text)


def package_at(path: Path) -> str:
    """The name of the package that a wheel or a folder holds, from the wheel's name or the folder's pyproject.toml."""
    if path.is_file():
        return read_wheel(path).name
    try:
        name = tomllib.loads((path / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    except FileNotFoundError:
        what = "has no pyproject.toml" if path.is_dir() else "does not exist"
        raise UsageError(f"{path} {what}", help="give a wheel, or the folder of a package's source") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path / 'pyproject.toml'} names no project: {error}", help="build a wheel of it and give that"
        ) from None
    return str(canonicalize_name(str(name)))


def with_package(releases: Iterable[Release], name: str, *, built: bool) -> list[Release]:
    """Those releases whose recipes hold the package `name`; `built`: and say how it is built.

    Raises NotFoundError, or IncompatibleError when none says how it is built.
    """
    releases = list(releases)
    holding = [r for r in releases if any(p.name == name for p in r.recipe.packages)]
    if not holding:
        raise NotFoundError(
            f"no release of {len(releases)} is made with the package {name}",
            help="`paceline runtime get --list` shows the releases, `--dry-run` with one what it is made of",
        )
    known = [r for r in holding if any(p.name == name and p.source for p in r.recipe.packages)]
    if built and not known:
        raise IncompatibleError(
            f"{holding[0].id} takes {name} as a wheel and does not say how it is built",
            help="build a wheel of the folder, and give that",
        )
    return known if built else holding


def carried(runtime: Runtime, known: Iterable[Release]) -> tuple[Release, dict[str, Path]]:
    """What an installed runtime was made of, to be made again elsewhere, and by sha256 the wheels that it keeps.

    It needs what the newest of `known` by its name needs; what came without a published hash has none. Raises
    InstallError when nothing says what it is made of.
    """
    if runtime.linked is not None:
        raise InstallError(
            f"{runtime.id} cannot be bundled: it is linked to {runtime.linked}, which is its owner's, and nothing "
            "says what that is made of",
            help="bundle a release; or install your build with `paceline runtime get WHEEL` and bundle that runtime",
        )
    like = next(iter(query.by_name_newest_first(r for r in known if r.name == runtime.name)), None)
    made = recorded(runtime.directory, like)
    if made is None or like is None:
        raise InstallError(
            f"{runtime.id} cannot be bundled: its manifest does not say what it is made of, or no release is known "
            f"that says what {runtime.name} needs",
            help="`paceline runtime verify` looks at the installed ones, `paceline runtime get --list` shows releases",
        )
    wheels = {p.sha256[0]: runtime.directory / PACKAGES / p.file for p in made.recipe.packages if p.file}
    if gone := [str(wheel) for wheel in wheels.values() if not wheel.is_file()]:
        raise InstallError(
            f"{runtime.id} cannot be bundled: {', '.join(gone)} is gone", help="`paceline runtime get` makes it anew"
        )
    unhashed = read_object(runtime.directory / MANIFEST).get("unpinned", ())
    packages = tuple(
        replace(p, sha256=(), size=()) if p.name in unhashed else replace(p, file=None) for p in made.recipe.packages
    )
    compiled = any(p.source for p in packages)
    requires = replace(
        like.requires,
        cpu_features=tuple(dict.fromkeys((*like.requires.cpu_features, *made.requires.cpu_features))),
        tools=like.requires.tools if compiled else (),
    )
    return replace(made, requires=requires, recipe=replace(made.recipe, packages=packages)), wheels


@contextmanager
def built_wheel(folder: Path, release: Release, *, cache: Path, progress: Progress) -> Iterator[Path]:
    """A wheel of the source in `folder`, built as `release` builds that package. Raises BuildError."""
    name = package_at(folder)
    with build_folder(cache, progress) as into:
        yield build_wheel(folder, name, release.recipe, into, cache=cache, progress=progress)


def from_wheel(releases: Sequence[Release], wheel: Wheel, python: str) -> list[Release]:
    """`releases` with their package of that name taken from `wheel`, for runtimes built on Python `python` (`3.12.4`).

    Where some are of the wheel's own version, those alone. Raises IncompatibleError when the wheel is made for other
    machines or another Python, and InstallError when it needs what none of the releases brings.
    """
    if not wheel.fits_here or not wheel.requires_python.contains(python):
        raise IncompatibleError(
            f"{wheel.path.name} does not fit this machine and Python {python}, which runtimes are built on here",
            help="build the wheel here, or give the folder of its source",
        )
    same = [r for r in releases if r.version == str(wheel.version)] or list(releases)
    complete = [r for r in same if not _missing(wheel, r.recipe)]
    if not complete:
        raise InstallError(
            f"{wheel.path.name} needs {', '.join(_missing(wheel, same[0].recipe))}, which {same[0].id} does not bring",
            help="choose another release for it with a QUERY and --from",
        )
    return [_from_wheel(r, wheel) for r in complete]


def _from_wheel(release: Release, wheel: Wheel) -> Release:
    recipe = release.recipe
    package = Package(wheel.name, str(wheel.version), (wheel.sha256,), file=wheel.path.name)
    packages = tuple(package if p.name == wheel.name else p for p in recipe.packages)
    compiled = any(p.source for p in packages)
    return replace(
        release,
        version=_version(wheel.version, wheel.sha256),
        channel="local",
        requires=release.requires if compiled else replace(release.requires, tools=()),
        recipe=replace(
            recipe,
            packages=packages,
            build_packages=recipe.build_packages if compiled else (),
            config_settings={n: s for n, s in recipe.config_settings.items() if canonicalize_name(n) != wheel.name},
            expected_build_s=recipe.expected_build_s if compiled else None,
            unhashed={n: page for n, page in recipe.unhashed.items() if canonicalize_name(n) != wheel.name},
            roots=(),
        ),
        notes=f"{wheel.name} comes from {wheel.path.name}.",
        source=f"{release.source}, {wheel.name} of this machine",
    )


def _version(version: Version, sha256: str) -> str:
    return f"{version}{'.' if version.local else '+'}{LOCAL}.{sha256[:8]}"


def _missing(wheel: Wheel, recipe: Recipe) -> list[str]:
    """What the wheel requires here and the recipe lacks, or has in another version."""
    brought = {p.name: p for p in recipe.packages if applies(p)}
    missing = []
    for need in wheel.requires:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        found = brought.get(str(canonicalize_name(need.name)))
        if found is None:
            missing.append(str(need))
        elif not need.specifier.contains(found.version, prereleases=True):
            missing.append(f"{need.name}{need.specifier} (not {found.version})")
    return missing
