#!/usr/bin/env python3
"""Refresh the locks of registry.json: `python runtimes/lock_registry.py [NAME ...]`.

People write each release's facts and, in its recipe, `roots` (what to install) and `build_roots` (what its source
builds need). This script resolves them with uv for the release's platform and every Python that `requires.python`
allows, and writes `packages` and `build_packages`: exact versions with the sha256 of every file that platform can use.
A package named in `unhashed` is taken from the index page given there and stays without hashes.

Without arguments every release is locked anew; with names (`llama.cpp-linux-x86_64-cpu`) only those.
The index is the one uv is configured with; its address is not written down. uv works in a cache of its own, because
resolving a source distribution anew makes uv forget the wheels that were built from it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import uv
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REGISTRY = Path(__file__).resolve().parent.parent / "registry.json"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def main() -> None:
    registry = json.loads(REGISTRY.read_text(encoding="utf-8"))
    wanted = set(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="lock-") as cache:
        os.environ["UV_CACHE_DIR"] = cache
        _lock_all(registry, wanted)


def _lock_all(registry: dict[str, Any], wanted: set[str]) -> None:
    resolved: dict[str, list[dict[str, Any]]] = {}
    for release in registry["releases"]:
        name = f"{release['engine']}-{release['platform']}"
        if not wanted or name in wanted:
            _lock(release, resolved)
            recipe = release["recipe"]
            REGISTRY.write_text(_dump(registry), encoding="utf-8")
            built = len(recipe.get("build_packages", []))
            print(f"{name}: {len(recipe['packages'])} packages, {built} for the build", flush=True)


def _lock(release: dict[str, Any], resolved: dict[str, list[dict[str, Any]]]) -> None:
    requires, recipe = release["requires"], release["recipe"]
    unhashed = {str(canonicalize_name(k)): v for k, v in recipe.get("unhashed", {}).items()}
    built = sorted(str(canonicalize_name(name)) for name in recipe.get("config_settings", {}))
    pythons = [p for p in PYTHONS if SpecifierSet(requires.get("python", "")).contains(f"{p}.99")]
    platform = _uv_platform(requires)

    def resolve(roots: list[str], unhashed: dict[str, str], built: list[str]) -> list[dict[str, Any]]:
        key = repr((roots, platform, pythons, unhashed, built))
        if key not in resolved:
            resolved[key] = _resolve(roots, platform, pythons, unhashed, set(built))
        return resolved[key]

    recipe["packages"] = resolve(recipe["roots"], unhashed, built)
    if recipe.get("build_roots"):
        recipe["build_packages"] = resolve(recipe["build_roots"], {}, [])


def _uv_platform(requires: dict[str, Any]) -> str:
    """uv's name of the oldest platform the release admits; its wheels run on every newer one."""
    arch = {"x86_64": "x86_64", "arm64": "aarch64"}[requires["arch"]]
    match requires["os"]:
        case "linux":
            return f"{arch}-manylinux_{requires['min_glibc'].replace('.', '_')}"
        case "macos":
            os.environ["MACOSX_DEPLOYMENT_TARGET"] = requires["min_os_version"]
            return f"{arch}-apple-darwin"
        case "windows":
            return f"{arch}-pc-windows-msvc"
        case other:
            raise SystemExit(f"unknown os {other!r}")


def _resolve(
    roots: list[str], platform: str, pythons: list[str], unhashed: dict[str, str], built: set[str]
) -> list[dict[str, Any]]:
    """One pinned list for all Pythons: the oldest decides the versions, a package only some need gets a marker."""
    found: dict[str, dict[str, Any]] = {}
    needed_by: dict[str, list[str]] = {}
    for python in pythons:
        pins = [f"{name}=={package['version']}" for name, package in found.items()]
        for package in _compile(roots, pins, platform, python):
            name, source = package["name"], package["name"] in built
            files = [package["sdist"]] if source else package.get("wheels", [])
            if not files and name not in unhashed:
                raise SystemExit(f"{name} {package['version']} has no wheel for Python {python} on {platform}")
            entry = found.setdefault(name, {"name": name, "version": package["version"]})
            if name in unhashed:
                entry["index"] = unhashed[name]
            else:
                hashes = {f["hashes"]["sha256"] for f in files}
                entry["sha256"] = sorted({*entry.get("sha256", []), *hashes})
            if source:
                entry["source"] = True
            needed_by.setdefault(name, []).append(python)
    for name, users in needed_by.items():
        if users != pythons:
            found[name]["marker"] = _marker(users, pythons)
    return [found[name] for name in sorted(found)]


def _compile(roots: list[str], pins: list[str], platform: str, python: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        requirements, constraints = Path(folder) / "roots.in", Path(folder) / "pins.txt"
        requirements.write_text("\n".join(roots), encoding="utf-8")
        constraints.write_text("\n".join(pins), encoding="utf-8")
        command = [uv.find_uv_bin(), "pip", "compile", str(requirements), "--constraints", str(constraints)]
        command += ["--python-version", python, "--python-platform", platform, "--format", "pylock.toml", "--quiet"]
        done = subprocess.run([*command, "--no-header"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{', '.join(roots)} for Python {python} on {platform}:\n{done.stderr}")
    return list(tomllib.loads(done.stdout)["packages"])


def _marker(users: list[str], pythons: list[str]) -> str:
    if users == pythons[: len(users)]:
        return f"python_version <= '{users[-1]}'"
    if users == pythons[-len(users) :]:
        return f"python_version >= '{users[0]}'"
    return " or ".join(f"python_version == '{p}'" for p in users)


def _dump(registry: dict[str, Any]) -> str:
    """JSON with one package per line, so that a change of a lock reads as one."""
    packages: list[str] = []

    def fold(value: Any) -> Any:
        if isinstance(value, dict) and {"name", "version"} <= value.keys():
            packages.append(json.dumps(value))
            return f"\0{len(packages) - 1}\0"
        if isinstance(value, dict):
            return {k: fold(v) for k, v in value.items()}
        return [fold(v) for v in value] if isinstance(value, list) else value

    text = json.dumps(fold(registry), indent=1, ensure_ascii=False)
    return re.sub(r'"\\u0000(\d+)\\u0000"', lambda m: packages[int(m[1])], text) + "\n"


if __name__ == "__main__":
    main()
