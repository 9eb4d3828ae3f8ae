"""Versions, the environment, and the folders that Paceline writes in."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import paceline
from paceline.doctor.finding import Finding, Patient, Status
from paceline.store import transaction

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


_OURS = re.compile(r"PACELINE_\w+|CUDA_VISIBLE_DEVICES")
_OF_UV = re.compile(r"(UV|PIP)_\w+|(HTTP|HTTPS|ALL|NO)_PROXY|SSL_CERT_(FILE|DIR)")
_SECRET = re.compile(r"//[^/@\s]+@")
_LEAST_FREE = 1 << 30


def versions(patient: Patient) -> Iterator[Finding]:
    """Which Paceline and which Python this is."""
    text = f"Paceline {paceline.__version__}, Python {platform.python_version()} ({sys.executable})"
    yield Finding("versions", Status.OK, text)


def environment(patient: Patient) -> Iterator[Finding]:
    """The variables that change what Paceline does, without the passwords in them."""
    from paceline.packages.uv import is_heeded

    known = {
        n: v
        for n, v in patient.environ.items()
        if v and (_OURS.fullmatch(n.upper()) or (_OF_UV.fullmatch(n.upper()) and is_heeded(n, patient.environ)))
    }
    for name, value in sorted(known.items()):
        shown = "…" if re.search(r"TOKEN|KEY|PASSWORD|SECRET", name.upper()) else _SECRET.sub("//…@", value)
        yield Finding("environment", Status.NOTE, f"{name}={shown} is set, and Paceline or uv heeds it")
    if not known:
        yield Finding("environment", Status.OK, "no variable is set that Paceline or uv heeds")


def home(patient: Patient) -> Iterator[Finding]:
    """Whether the home can be written, and whether one rename reaches from staging to the runtimes."""
    folder = patient.store.home
    way_out = "give yourself the right to write there, or set PACELINE_HOME to another folder"
    problem = yield from _writable("home", folder, way_out)
    if problem:
        return
    if not folder.exists():
        return
    parts = (patient.store.folder, patient.store.staging)
    if not transaction.is_one_mount(*(part if part.exists() else folder for part in parts)):
        yield Finding(
            "home",
            Status.PROBLEM,
            f"{' and '.join(map(str, parts))} are not on one file system, so nothing can be installed by one rename",
            "let runtimes/ and staging/ be plain folders of the home; to move runtimes, move the whole home",
        )


def cache(patient: Patient) -> Iterator[Finding]:
    """Whether the cache can be written, and whether runtimes can share its files."""
    way_out = "give yourself the right to write there, or set PACELINE_CACHE to another folder"
    problem = yield from _writable("cache", patient.cache, way_out)
    both = (patient.cache, patient.store.home)
    if not problem and all(p.exists() for p in both) and len({p.stat().st_dev for p in both}) > 1:
        text = f"{patient.cache} and {patient.store.home} are on different file systems: runtimes share no files"
        yield Finding("cache", Status.NOTE, text, "set PACELINE_CACHE to a folder beside the home to save space")


def disk(patient: Patient) -> Iterator[Finding]:
    """What the cache takes, how much is free, and whether the largest installed runtime would fit once more."""
    from paceline.packages.cache import look

    parts = look(patient.cache)
    taken = ", ".join(f"{part.size_bytes / 1e9:.1f} GB of {part.name}" for part in parts if part.size_bytes)
    shared = sum(part.shared_bytes for part in parts)
    said = f"{taken}; {shared / 1e9:.1f} GB of it are shared with runtimes" if taken else "nothing"
    yield Finding("disk", Status.OK, f"the cache {patient.cache} holds {said}")
    sizes = [patient.store.size(r) or 0 for r in patient.store.runtimes()]
    needed = max([_LEAST_FREE, *sizes])
    for folder in dict.fromkeys((_existing(patient.store.home), _existing(patient.cache))):
        free = shutil.disk_usage(folder).free
        said = f"{free / 1e9:.1f} GB are free in {folder}"
        if free < needed:
            text = f"{said}; an installation or an update may need {needed / 1e9:.1f} GB"
            yield Finding("disk", Status.PROBLEM, text, "make room; `paceline runtime prune --cache` may help")
        else:
            yield Finding("disk", Status.OK, said)


def _writable(check: str, folder: Path, way_out: str) -> Generator[Finding, None, bool]:
    """Yield whether files can be made in `folder`, or where it would be made; returns True for a problem."""
    there = _existing(folder)
    if not there.is_dir():
        yield Finding(check, Status.PROBLEM, f"{folder} cannot be used: {there} is no folder", way_out)
        return True
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as probe:
            Path(probe, "a").write_text("a")
            os.replace(Path(probe, "a"), Path(probe, "b"))  # noqa: PTH105 - the very call that is tried
    except OSError as error:
        yield Finding(check, Status.PROBLEM, f"{there} cannot be written: {error.strerror or error}", way_out)
        return True
    text = f"{folder} can be written" if there == folder else f"{folder} is not there yet and can be made"
    yield Finding(check, Status.OK, text)
    return False


def _existing(folder: Path) -> Path:
    return next((p for p in (folder, *folder.parents) if p.exists()), folder)
