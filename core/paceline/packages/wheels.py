"""What a wheel file says of itself, read without unpacking it and without running any of it.

The formats: https://packaging.python.org/en/latest/specifications/binary-distribution-format/ and
https://packaging.python.org/en/latest/specifications/entry-points/
"""

from __future__ import annotations

import configparser
import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packaging.metadata import parse_email
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from paceline.errors import ArchiveError
from paceline.packages.archives import check_zip

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from packaging.tags import Tag


@dataclass(frozen=True)
class Wheel:
    """A wheel whose archive was checked whole (see `archives`)."""

    path: Path
    name: str
    """Normalized: `llama-cpp-python`."""
    version: Version
    sha256: str
    unpacked_bytes: int
    names: tuple[str, ...]
    """Of its files."""
    tags: frozenset[Tag]
    requires: tuple[Requirement, ...]
    requires_python: SpecifierSet
    entry_points: Mapping[str, Mapping[str, str]]
    """By group: name -> `module` or `module:attribute`."""

    @property
    def fits_here(self) -> bool:
        """Whether the interpreter that runs this, or the one below its environment, can install it."""
        return any(tag in self.tags for tag in sys_tags())

    @property
    def modules(self) -> frozenset[str]:
        """What it puts directly into site-packages, without endings: the top names that can be imported, and more."""
        paths = [self._installed(name) for name in self.names]
        return frozenset(path.split("/")[0].split(".")[0] for path in paths if path is not None)

    @property
    def startup_files(self) -> tuple[str, ...]:
        """The `.pth` files, whose lines Python runs at every start of an environment that has them."""
        paths = [self._installed(name) for name in self.names]
        return tuple(path for path in paths if path is not None and "/" not in path and path.endswith(".pth"))

    def _installed(self, name: str) -> str | None:
        """Where below site-packages a file goes; None for metadata, scripts and data."""
        top, _, rest = name.partition("/")
        if top.endswith(".data"):
            kind, _, path = rest.partition("/")
            return path if kind in ("purelib", "platlib") else None
        return None if top.endswith(".dist-info") else name


def read_wheel(path: Path) -> Wheel:
    """Check the archive at `path` and read its metadata. Raises ArchiveError that says what is wrong with it."""
    try:
        if not _FILE_NAME.fullmatch(path.name):
            raise InvalidWheelFilename(f"{path.name!r} has characters that no wheel's name has")
        name, version, _, tags = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise ArchiveError(f"{path.name} is no wheel: {error}", help="give a file as `pip wheel` names it") from None
    contents = check_zip(path)
    folders = {n.split("/")[0] for n in contents.names if n.split("/")[0].endswith(".dist-info")}
    if len(folders) != 1:
        raise _wrong(path, f"it has {len(folders)} dist-info folders")
    (folder,) = folders
    with zipfile.ZipFile(path) as archive:
        raw, _ = parse_email(_read(archive, path, f"{folder}/METADATA"))
        listed = f"{folder}/entry_points.txt"
        entry_points = _read(archive, path, listed) if listed in contents.names else b""
    try:
        if canonicalize_name(raw.get("name", "")) != name or Version(raw.get("version", "")) != version:
            raise _wrong(path, f"its metadata is of {raw.get('name')} {raw.get('version')}")
        requires = tuple(Requirement(text) for text in raw.get("requires_dist", []))
        return Wheel(
            path=path,
            name=str(name),
            version=version,
            sha256=contents.sha256,
            unpacked_bytes=contents.unpacked_bytes,
            names=contents.names,
            tags=tags,
            requires=requires,
            requires_python=SpecifierSet(raw.get("requires_python", "")),
            entry_points=_entry_points(entry_points.decode()),
        )
    except (InvalidRequirement, InvalidSpecifier, InvalidVersion, configparser.Error, UnicodeDecodeError) as error:
        raise _wrong(path, f"its metadata cannot be read: {' '.join(str(error).split())}") from None


_FILE_NAME = re.compile(r"[A-Za-z0-9_.+!-]+\.whl", re.ASCII)
_METADATA_BYTES = 8 * 2**20


def _read(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    try:
        if archive.getinfo(name).file_size > _METADATA_BYTES:
            raise _wrong(path, f"its {name} has more than {_METADATA_BYTES} bytes")
        return archive.read(name)
    except KeyError:
        raise _wrong(path, f"it has no {name}") from None


def _entry_points(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
    parser.optionxform = _as_it_is  # type: ignore[assignment]
    parser.read_string(text)
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _as_it_is(option: Any) -> str:
    return str(option)


def _wrong(path: Path, problem: str) -> ArchiveError:
    return ArchiveError(f"{path.name} is not installed: {problem}", help="make the wheel anew")
