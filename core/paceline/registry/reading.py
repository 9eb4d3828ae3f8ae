"""Read a registry file, checked in every detail.

People and programs write it; whatever is wrong with it is named by its JSON path.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paceline.errors import RegistryError
from paceline.types import GpuRequirement, Package, Recipe, Release, Requirements

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA_VERSION = 1


def read_registry(file: Path, *, way_out: str = "reinstall Paceline") -> tuple[Release, ...]:
    """Every release in a registry file. Raises RegistryError that names the place in the file, and `way_out`."""
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise RegistryError(f"the registry {file} cannot be read: {error.strerror}", help=way_out) from None
    except ValueError as error:
        raise RegistryError(f"the registry {file} is no JSON: {error}", help=way_out) from None
    try:
        return _registry(_Node(data, "$"))
    except _Wrong as wrong:
        raise RegistryError(
            f"the registry {file} is wrong at {wrong}", help=f"{way_out}, or mend the file at that place"
        ) from None


class _Wrong(Exception):
    """A place in the file, and what is wrong there."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        if pattern is not None and not pattern.fullmatch(self.value):
            raise self.fail(f"{self.value!r} does not have the form {pattern.pattern}")
        return self.value

    def texts(self, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        return tuple(item.text(pattern) for item in self.items())

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise self.fail(f"expected a number, found {_say(self.value)}")
        return self.value

    def integer(self) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.fail(f"expected a whole number, found {_say(self.value)}")
        return self.value

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.fail(f"expected true or false, found {_say(self.value)}")
        return self.value


def _registry(node: _Node) -> tuple[Release, ...]:
    # The schema version comes first: a newer file may have other fields.
    version = node.map().get("schema_version", _Node(None, "$.schema_version")).integer()
    if version != SCHEMA_VERSION:
        raise _Wrong(f"$.schema_version: {version} is not {SCHEMA_VERSION}, the one this Paceline reads")
    releases: dict[str, Release] = {}
    for item in node.object("schema_version releases")["releases"].items():
        release = _release(item)
        if release.id in releases:
            raise item.fail(f"{release.id} is listed twice")
        releases[release.id] = release
    return tuple(releases.values())


def _release(node: _Node) -> Release:
    fields = node.object("engine version platform formats requires recipe", "channel features rank notes")
    return Release(
        engine=fields["engine"].text(_NAME),
        version=fields["version"].text(_VERSION),
        platform=fields["platform"].text(_NAME),
        formats=fields["formats"].texts(_NAME),
        requires=_requirements(fields["requires"]),
        recipe=_recipe(fields["recipe"]),
        channel=fields["channel"].text() if "channel" in fields else "stable",
        features=fields["features"].texts() if "features" in fields else (),
        rank=fields["rank"].integer() if "rank" in fields else 0,
        notes=fields["notes"].text() if "notes" in fields else "",
    )


def _requirements(node: _Node) -> Requirements:
    texts = "os arch min_os_version min_glibc python min_host"
    fields = node.object("", f"{texts} cpu_features tools gpu")
    for name, known in {"os": ("linux", "macos", "windows"), "arch": ("x86_64", "arm64")}.items():
        if name in fields and fields[name].value not in known:
            raise fields[name].fail(f"{fields[name].value!r} is none of {', '.join(known)}")
    return Requirements(
        **{name: fields[name].text() for name in texts.split() if name in fields},
        cpu_features=fields["cpu_features"].texts() if "cpu_features" in fields else (),
        tools=fields["tools"].texts() if "tools" in fields else (),
        gpu=_gpu(fields["gpu"]) if "gpu" in fields else None,
    )


def _gpu(node: _Node) -> GpuRequirement:
    fields = node.object("make", "min_driver min_compute_capability max_compute_capability")
    return GpuRequirement(**{name: field.text() for name, field in fields.items()})


def _recipe(node: _Node) -> Recipe:
    optional = "build_packages config_settings prune expected_build_s installed_bytes roots build_roots unhashed"
    fields = node.object("packages", optional)
    settings: dict[str, dict[str, str]] = {}
    if "config_settings" in fields:
        for package, values in fields["config_settings"].map().items():
            settings[package] = {key: value.text() for key, value in values.map().items()}
    build_packages = fields["build_packages"].items() if "build_packages" in fields else []
    unhashed = fields["unhashed"].map() if "unhashed" in fields else {}
    return Recipe(
        packages=tuple(_package(item) for item in fields["packages"].items()),
        build_packages=tuple(_package(item) for item in build_packages),
        config_settings=settings,
        prune=tuple(_below(item) for item in fields["prune"].items()) if "prune" in fields else (),
        expected_build_s=fields["expected_build_s"].number() if "expected_build_s" in fields else None,
        installed_bytes=fields["installed_bytes"].integer() if "installed_bytes" in fields else None,
        roots=fields["roots"].texts() if "roots" in fields else (),
        build_roots=fields["build_roots"].texts() if "build_roots" in fields else (),
        unhashed={name: page.text() for name, page in unhashed.items()},
    )


def _package(node: _Node) -> Package:
    fields = node.object("name version", "sha256 index source marker")
    index = fields["index"].text() if "index" in fields else None
    if index is None and not fields.get("sha256", _Node([], "")).value:
        raise node.fail("has neither sha256 nor an index of its own, so nothing would say what to install")
    return Package(
        name=fields["name"].text(_NAME),
        version=fields["version"].text(_VERSION),
        sha256=fields["sha256"].texts(_SHA256) if "sha256" in fields else (),
        index=index,
        source=fields["source"].flag() if "source" in fields else False,
        marker=fields["marker"].text() if "marker" in fields else None,
    )


def _below(node: _Node) -> str:
    """A relative path that stays below its folder, because what it names is deleted."""
    parts = node.text().replace("\\", "/").split("/")
    if any(part in ("", ".", "..") or ":" in part for part in parts):
        raise node.fail(f"{node.value!r} is no path below site-packages")
    return "/".join(parts)


def _say(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
