"""CUDA's libraries: packages of the runtime, in every release that uses them."""

from __future__ import annotations

from importlib import resources

import pytest

from paceline.packages.locked import applies
from paceline.registry import read_registry

RELEASES = [
    release
    for release in read_registry(resources.files("paceline") / "registry.json")
    if release.engine == "llama.cpp-cuda"
]


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.platform)
def test_every_release_brings_what_it_links_to(release):
    major = "12" if "cuda12" in release.platform else "13"
    suffix = "-cu12" if major == "12" else ""
    packages = {package.name: package for package in release.recipe.packages}
    for name in ("nvidia-cuda-runtime", "nvidia-cublas"):
        package = packages[name + suffix]
        assert package.version.startswith(f"{major}.")
        assert package.sha256
        assert package.size
        assert applies(package)
    if release.requires.tools:  # built here, by a compiler of the same major version
        assert f"nvcc>={major},<{int(major) + 1}" in release.requires.tools
