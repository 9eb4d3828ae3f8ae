"""Packages in a folder of their own on the end of the host's path, which change nothing that the host has.

What the host's environment holds is there for them, in exactly its versions, and is never installed again: what comes
first on the path is what is imported, so that a second copy would be dead or, worse, half used. Where a package wants
another version, there is no solution, and uv says why.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tomllib
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from paceline import child
from paceline.errors import BuildError, InstallError
from paceline.network import is_offline
from paceline.packages.uv import uv_command, uv_environment, way_out
from paceline.store import transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

LOCK = "pylock.toml"
_TOLD = 15


@dataclass(frozen=True)
class Locked:
    """A package of a solution; with a `file`, a wheel of this machine."""

    name: str
    version: str
    sha256: tuple[str, ...]
    file: Path | None = None


def host_packages(without: Path | None = None) -> dict[str, metadata.Distribution]:
    """What can be imported here, by normalized name, but for what lies in the folder `without`."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions(path=[p for p in sys.path if without is None or Path(p) != without]):
        try:
            name = canonicalize_name(distribution.metadata["Name"])
            Version(distribution.version)
        except (InvalidVersion, TypeError, AttributeError):  # damaged, or of a kind that nothing can depend on
            continue
        found.setdefault(name, distribution)
    return found


def resolve(
    requirements: Sequence[str],
    host: Mapping[str, metadata.Distribution],
    folder: Path,
    *,
    cache: Path,
    upgrade: Collection[str] = (),
) -> tuple[Locked, ...]:
    """What `requirements` need beside `host`, as wheels from the index that the user has configured.

    Leaves the solution in `folder`/pylock.toml; one that is there is kept to, but for the packages in `upgrade`. Raises
    InstallError with uv's reason when there is none.
    """
    stubs = folder / "host"
    transaction.make_folder(stubs)
    for name, distribution in host.items():
        _write_stub(stubs, name, distribution)
    transaction.write_text(folder / "requirements.in", "".join(f"{line}\n" for line in requirements))
    pins = "".join(f"{name}=={distribution.version}\n" for name, distribution in host.items())
    transaction.write_text(folder / "host.txt", pins)
    # uv takes find-links of its command line instead of those of the environment; both are wanted.
    environment = uv_environment(os.environ, pinned=False)
    environment["UV_FIND_LINKS"] = ",".join(filter(None, [str(stubs), environment.get("UV_FIND_LINKS")]))
    arguments: list[str | Path] = ["pip", "compile", "requirements.in", "--constraints", "host.txt", "--no-header"]
    arguments += ["--format", "pylock.toml", "--output-file", LOCK, "--only-binary", ":all:", "--no-python-downloads"]
    anew = ("upgrade",) if is_offline() else ("upgrade", "refresh")
    arguments += [f"--{what}-package={name}" for name in upgrade for what in anew]
    arguments += ["--python", sys.executable, "--cache-dir", cache / "resolution", "-q"]
    said = _uv(arguments, folder, environment)
    if said is not None:
        raise InstallError(
            f"{', '.join(requirements)} cannot be installed beside this Paceline: {said}",
            help=way_out(said)
            or "its own packages stay as they are; ask the plugin's author for a version that fits them",
        )
    transaction.delete(stubs)
    entries = tomllib.loads((folder / LOCK).read_text(encoding="utf-8")).get("packages", [])
    return tuple(_locked(entry) for entry in entries if canonicalize_name(entry["name"]) not in host)


def install(packages: Sequence[Locked], target: Path, *, cache: Path) -> None:
    """Unpack the wheels of `packages` into `target`, every hash checked; nothing of them runs. Raises BuildError."""
    transaction.make_folder(target)
    if not packages:
        return
    lock = target.parent / "requirements.txt"
    transaction.write_text(lock, "".join(_line(package) for package in packages))
    arguments: list[str | Path] = ["pip", "install", "--python", sys.executable, "--target", target, "--no-deps"]
    arguments += ["--require-hashes", "--only-binary", ":all:", "-r", lock, "--cache-dir", cache / "uv"]
    # Copied, because links would let whatever writes into a plugin write into the cache.
    arguments += ["--link-mode", "copy", "--compile-bytecode", "--no-progress", "-q"]
    transaction.step("run uv", target)
    said = _uv(arguments, target.parent, uv_environment(os.environ))
    if said is not None:
        names = ", ".join(f"{p.name} {p.version}" for p in packages)
        raise BuildError(f"{names} could not be fetched: {said}", help=way_out(said) or "try again")


def taken_modules(distributions: Iterable[metadata.Distribution], ours: Path) -> list[tuple[str, str, str]]:
    """What of the distributions could never be imported: (distribution, module, whose it is).

    What lies below `ours`, an earlier installation of the same, takes nothing.
    """
    taken = []
    for distribution in distributions:
        for module in sorted(_modules(distribution)):
            if module in sys.stdlib_module_names:
                taken.append((distribution.name, module, "Python's own"))
            elif (file := _elsewhere(module, ours)) is not None:
                taken.append((distribution.name, module, f"already here, from {file}"))
    return taken


def _modules(distribution: metadata.Distribution) -> set[str]:
    parts = [file.parts for file in distribution.files or ()]
    first = {p[0] for p in parts if len(p) > 1 or p[0].endswith((".py", ".so", ".pyd"))}
    return {name.split(".")[0] for name in first if not name.endswith((".dist-info", ".data", ".pth")) and name != ".."}


def _elsewhere(module: str, ours: Path) -> str | None:
    """The file of a module that is found outside `ours`; None for none, and for a namespace, which may be shared."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or Path(spec.origin).is_relative_to(ours):
        return None
    return spec.origin


def _write_stub(folder: Path, name: str, distribution: metadata.Distribution) -> None:
    """A wheel with the name and version of what is installed, and what its extras would need.

    What it needs anyhow is here, and left out: the index is not to be asked for all that the host is made of.
    """
    stem = f"{name.replace('-', '_')}-{distribution.version}"
    extras = [f"Provides-Extra: {extra}\n" for extra in distribution.metadata.get_all("Provides-Extra") or ()]
    extras += [f"Requires-Dist: {need}\n" for need in distribution.requires or () if "extra ==" in need]
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {distribution.version}\n{''.join(extras)}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", text)
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def _locked(entry: Mapping[str, Any]) -> Locked:
    files = [entry["archive"]] if "archive" in entry else entry.get("wheels", [])
    hashes = tuple(sorted({file["hashes"]["sha256"] for file in files if "sha256" in file.get("hashes", {})}))
    if not hashes:
        raise InstallError(
            f"the package index publishes no hash for {entry['name']} {entry['version']}, so it cannot be checked",
            help="fetch its wheel by other means, check it, and install that file",
        )
    path = entry["archive"].get("path") if "archive" in entry else None
    return Locked(str(canonicalize_name(entry["name"])), entry["version"], hashes, Path(path) if path else None)


def _line(package: Locked) -> str:
    text = f"{package.name} @ {package.file.as_uri()}" if package.file else f"{package.name}=={package.version}"
    return " \\\n    ".join([text, *(f"--hash=sha256:{digest}" for digest in package.sha256)]) + "\n"


def _uv(arguments: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> str | None:
    """Run uv; None when it succeeds, else the last it said."""
    lines: list[str] = []
    status = child.run(uv_command(arguments, environment), env=environment, cwd=folder, on_line=lines.append)
    return ("".join(lines[-_TOLD:]).strip() or f"uv ended with status {status}") if status else None
