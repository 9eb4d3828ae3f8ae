"""Read a registry, checked in every detail.

People, programs and strangers write it; whatever is wrong with it is named by its JSON path. A release says which
packages are installed and built, so who writes one has code run in a runtime. Nothing beyond that may follow from
reading it: no path leaves the runtime, no text becomes an option or a line of its own for uv, pip or a terminal.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from packaging.markers import InvalidMarker, Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from paceline import refusals
from paceline.errors import RegistryError
from paceline.types import GpuRequirement, Package, Recipe, Release, Requirements
from paceline.untrusted_json import TooDeep, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCHEMA_VERSIONS = (1, 2)
"""The second one adds `size` to packages."""
_T = TypeVar("_T")


def read_registry(file: Path, *, way_out: str = "reinstall Paceline", mend: str | None = None) -> tuple[Release, ...]:
    """Every release in a registry file.

    Raises RegistryError that names the place in the file, and as the way out `mend` for a wrong place and `way_out` for
    what cannot be read at all.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RegistryError(
            f"the registry {file} cannot be read: {error.strerror}", help=refusals.way_out(error, file) or way_out
        ) from None
    return parse_registry(
        data, f"the registry {file}", way_out=way_out, mend=mend or f"{way_out}, or mend the file at that place"
    )


def parse_registry(
    data: bytes, name: str, *, way_out: str, mend: str | None = None, remote: bool = False
) -> tuple[Release, ...]:
    """Every release in a registry's text. Raises RegistryError that calls it `name`.

    `remote`: it comes from somebody else, so its packages may not be taken from this machine's files, nor over a
    connection that anybody can change when no hash is pinned.
    """
    try:
        value = parse(data)
    except TooDeep:
        raise RegistryError(f"{name} is nested too deeply", help=way_out) from None
    except ValueError as error:
        raise RegistryError(f"{name} is no JSON: {error}", help=way_out) from None
    return parse_registry_value(value, name, way_out=way_out, mend=mend, remote=remote)


def parse_registry_value(
    value: object, name: str, *, way_out: str, mend: str | None = None, remote: bool = False
) -> tuple[Release, ...]:
    """As `parse_registry`, of what was JSON."""
    try:
        releases = _registry(_Node(value, "$"))
        if remote:
            _check_pages(releases)
    except _Wrong as wrong:
        raise RegistryError(f"{name} is wrong at {wrong}", help=mend or way_out) from None
    return releases


class _Wrong(Exception):
    """A place in the file, and what is wrong there."""


# Names and versions become parts of folder names, which no file system lets be long.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,59}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DOTTED = re.compile(r"\d{1,9}(\.\d{1,9}){0,4}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
_TOOL = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._+-]{0,79})\s*([<>=!~][^|]*)?")
_SETTING = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_LARGEST_FILE = 64 * 10**9


@dataclass(frozen=True)
class _Node:
    """A JSON value with its path; every reader below either returns what it names or raises _Wrong."""

    value: Any
    path: str

    def fail(self, what: str) -> _Wrong:
        return _Wrong(f"{self.path}: {what}")

    def object(self, required: str, optional: str = "") -> dict[str, _Node]:
        if not isinstance(self.value, dict):
            raise self.fail(f"expected an object, found {_say(self.value)}")
        for key in required.split():
            if key not in self.value:
                raise self.fail(f"{key!r} is missing")
        for key in self.value:
            if key not in required.split() and key not in optional.split():
                raise _Node(None, f"{self.path}.{key}").fail("is no field of this object")
        return {key: _Node(value, f"{self.path}.{key}") for key, value in self.value.items()}

    def map(self) -> dict[str, _Node]:
        if not isinstance(self.value, dict):
            raise self.fail(f"expected an object, found {_say(self.value)}")
        return {key: _Node(value, f"{self.path}[{key!r}]") for key, value in self.value.items()}

    def items(self) -> list[_Node]:
        if not isinstance(self.value, list):
            raise self.fail(f"expected a list, found {_say(self.value)}")
        return [_Node(value, f"{self.path}[{i}]") for i, value in enumerate(self.value)]

    def text(self, pattern: re.Pattern[str] | None = None) -> str:
        if not isinstance(self.value, str):
            raise self.fail(f"expected a text, found {_say(self.value)}")
        if pattern is not None:
            if not pattern.fullmatch(self.value):
                raise self.fail(f"{self.value!r} does not have the form {pattern.pattern}")
        # Line breaks would start a new line of a lock, escapes would rewrite what a terminal shows.
        elif any(unicodedata.category(character).startswith("C") for character in self.value):
            raise self.fail(f"{self.value!r} has a character that cannot be printed")
        return self.value

    def texts(self, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        return tuple(item.text(pattern) for item in self.items())

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise self.fail(f"expected a number, found {_say(self.value)}")
        if not math.isfinite(self.value) or self.value < 0:
            raise self.fail(f"{self.value} is no size and no time")
        return self.value

    def integer(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.fail(f"expected a whole number, found {_say(self.value)}")
        return self.value

    def size(self) -> int:
        if self.integer() < 0:
            raise self.fail(f"{self.value} is no size")
        return self.integer()

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.fail(f"expected true or false, found {_say(self.value)}")
        return self.value


def _registry(node: _Node) -> tuple[Release, ...]:
    # The schema version comes first: a newer file may have other fields.
    version = node.map().get("schema_version", _Node(None, "$.schema_version")).integer()
    if version not in SCHEMA_VERSIONS:
        known = " or ".join(map(str, SCHEMA_VERSIONS))
        raise _Wrong(f"$.schema_version: {version} is not {known}, which this Paceline reads")
    releases: dict[str, Release] = {}
    for item in node.object("schema_version releases")["releases"].items():
        release = _release(item)
        if release.id in releases:
            raise item.fail(f"{release.id} is listed twice")
        releases[release.id] = release
    return tuple(releases.values())


def _release(node: _Node) -> Release:
    fields = node.object("engine version platform formats requires recipe", "channel features rank notes published")
    return Release(
        engine=fields["engine"].text(_NAME),
        version=fields["version"].text(VERSION),
        platform=fields["platform"].text(_NAME),
        formats=fields["formats"].texts(_NAME),
        requires=_requirements(fields["requires"]),
        recipe=_recipe(fields["recipe"]),
        channel=fields["channel"].text(_WORD) if "channel" in fields else "stable",
        features=fields["features"].texts(_WORD) if "features" in fields else (),
        rank=fields["rank"].integer() if "rank" in fields else 0,
        notes=fields["notes"].text() if "notes" in fields else "",
        published=_time(fields["published"]) if "published" in fields else None,
    )


def _time(node: _Node) -> str:
    try:
        if datetime.fromisoformat(node.text()).tzinfo is not None:
            return node.text()
    except ValueError:
        pass
    raise node.fail(f"{node.value!r} is no time with an offset, such as 2026-11-24T08:00:00+00:00")


def _requirements(node: _Node) -> Requirements:
    texts = "os arch min_os_version min_glibc python min_host"
    fields = node.object("", f"{texts} cpu_features tools gpu")
    for name, known in {"os": ("linux", "macos", "windows"), "arch": ("x86_64", "arm64")}.items():
        if name in fields and fields[name].value not in known:
            raise fields[name].fail(f"{fields[name].value!r} is none of {', '.join(known)}")
    if "python" in fields:
        _readable(fields["python"], SpecifierSet, InvalidSpecifier)
    for name in ("min_os_version", "min_glibc", "min_host"):
        if name in fields:
            fields[name].text(VERSION if name == "min_host" else _DOTTED)
    return Requirements(
        **{name: fields[name].text() for name in texts.split() if name in fields},
        cpu_features=fields["cpu_features"].texts(_WORD) if "cpu_features" in fields else (),
        tools=_tools(fields["tools"]) if "tools" in fields else (),
        gpu=_gpu(fields["gpu"]) if "gpu" in fields else None,
    )


def _tools(node: _Node) -> tuple[str, ...]:
    """Commands, any one of a `|`-separated group, each with the versions that will do: `nvcc>=12,<13`."""
    for item in node.items():
        for part in item.text().split("|"):
            tool = _TOOL.fullmatch(part)
            if tool is None:
                raise item.fail(f"{part!r} is no command")
            _readable(_Node(tool[2] or "", item.path), SpecifierSet, InvalidSpecifier)
    return node.texts()


def _gpu(node: _Node) -> GpuRequirement:
    fields = node.object("make", "min_driver min_compute_capability max_compute_capability")
    return GpuRequirement(**{n: field.text(_WORD if n == "make" else _DOTTED) for n, field in fields.items()})


def _recipe(node: _Node) -> Recipe:
    optional = "build_packages config_settings prune expected_build_s installed_bytes roots build_roots unhashed"
    fields = node.object("packages", optional)
    settings: dict[str, dict[str, str]] = {}
    if "config_settings" in fields:
        for package, values in fields["config_settings"].map().items():
            _Node(package, values.path).text(_NAME)
            settings[package] = {_Node(k, v.path).text(_SETTING): v.text() for k, v in values.map().items()}
    build_packages = fields["build_packages"].items() if "build_packages" in fields else []
    unhashed = fields["unhashed"].map() if "unhashed" in fields else {}
    return Recipe(
        packages=tuple(_package(item) for item in fields["packages"].items()),
        build_packages=tuple(_package(item) for item in build_packages),
        config_settings=settings,
        prune=tuple(_below(item) for item in fields["prune"].items()) if "prune" in fields else (),
        expected_build_s=fields["expected_build_s"].number() if "expected_build_s" in fields else None,
        installed_bytes=fields["installed_bytes"].size() if "installed_bytes" in fields else None,
        roots=_roots(fields["roots"]) if "roots" in fields else (),
        build_roots=_roots(fields["build_roots"]) if "build_roots" in fields else (),
        unhashed={_Node(name, page.path).text(_NAME): _page(page) for name, page in unhashed.items()},
    )


def _roots(node: _Node) -> tuple[str, ...]:
    """Requirements by name and version; a direct URL would be taken from wherever it says."""
    for item in node.items():
        if _readable(item, Requirement, InvalidRequirement).url is not None:
            raise item.fail(f"{item.value!r} names an address instead of versions")
    return node.texts()


def _package(node: _Node) -> Package:
    fields = node.object("name version", "sha256 size index source marker")
    index = _page(fields["index"]) if "index" in fields else None
    if "marker" in fields:
        _readable(fields["marker"], Marker, InvalidMarker)
    if index is None and not fields.get("sha256", _Node([], "")).value:
        raise node.fail("has neither sha256 nor an index of its own, so nothing would say what to install")
    sha256 = fields["sha256"].texts(_SHA256) if "sha256" in fields else ()
    return Package(
        name=fields["name"].text(_NAME),
        version=fields["version"].text(VERSION),
        sha256=sha256,
        size=_sizes(fields["size"], len(sha256)) if "size" in fields else (),
        index=index,
        source=fields["source"].flag() if "source" in fields else False,
        marker=fields["marker"].text() if "marker" in fields else None,
    )


def _sizes(node: _Node, files: int) -> tuple[int, ...]:
    """How many bytes each file has; more than a download ever takes are refused here."""
    sizes = tuple(item.size() for item in node.items())
    if len(sizes) != files:
        raise node.fail(f"has {len(sizes)} sizes for {files} files in sha256")
    if not all(0 < size <= _LARGEST_FILE for size in sizes):
        raise node.fail(f"{_say(node.value)} has a size that no package has")
    return sizes


def _page(node: _Node) -> str:
    """The address of an index page: it becomes an option of uv, which would read `name=…` and plain paths as well."""
    text = node.text()
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - raises for what is no port
    except ValueError as error:
        raise node.fail(f"{text!r} is no address: {error}") from None
    if parts.scheme not in ("https", "http", "file") or not (parts.hostname or parts.scheme == "file"):
        raise node.fail(f"{text!r} is no address of an index page")
    if parts.username or parts.password or any(c in text for c in " \"'<>\\^`{|}$"):
        raise node.fail(f"{text!r} has a password or a character that no address has")
    return text


def _check_pages(releases: tuple[Release, ...]) -> None:
    for i, release in enumerate(releases):
        recipe = release.recipe
        pages = {*recipe.unhashed.values(), *(p.index for p in recipe.packages if p.index)}
        unpinned = {*recipe.unhashed.values(), *(p.index for p in recipe.unpinned)}
        for page in sorted(pages):
            parts = urlsplit(page)
            if parts.scheme == "file":
                raise _Wrong(f"$.releases[{i}].recipe: {page} is a folder of this machine, which only it may name")
            if parts.scheme == "http" and page in unpinned and not _is_loopback(parts.hostname or ""):
                raise _Wrong(f"$.releases[{i}].recipe: {page} publishes no hashes and is not asked over https")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _readable(node: _Node, kind: Callable[[str], _T], wrong: type[Exception]) -> _T:
    try:
        return kind(node.text())
    except wrong as error:
        said = str(error).splitlines()[0]
        raise node.fail(f"{node.value!r} cannot be read: {said}") from None


def _below(node: _Node) -> str:
    """A relative path that stays below its folder, because what it names is deleted."""
    parts = node.text().replace("\\", "/").split("/")
    if any(part in ("", ".", "..") or ":" in part for part in parts):
        raise node.fail(f"{node.value!r} is no path below site-packages")
    return "/".join(parts)


def _say(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
