"""CUDA's libraries are found where packages of a Windows environment keep them; stand-ins, nothing is loaded."""

from __future__ import annotations

import os

import pytest

from paceline_llama_cpp_worker import dlls


@pytest.fixture
def environment(tmp_path):
    packages = tmp_path / "Lib" / "site-packages"
    for library in (
        "nvidia/cublas/bin/cublas64_12.dll",
        "nvidia/cublas/bin/cublasLt64_12.dll",
        "nvidia/cuda_runtime/bin/cudart64_12.dll",
        "nvidia/cu13/bin/x86_64/cudart64_13.dll",
        "nvidia/cu13/include/cuda.h",
        "llama_cpp/lib/ggml-cuda.dll",
    ):
        (packages / library).parent.mkdir(parents=True, exist_ok=True)
        (packages / library).write_bytes(b"")
    return tmp_path


def test_on_windows_the_folders_of_the_packages_come_first(environment, monkeypatch):
    added = []
    monkeypatch.setattr(os, "add_dll_directory", added.append, raising=False)
    monkeypatch.setenv("PATH", "what was there")

    dlls.make_found(environment)

    nvidia = environment / "Lib" / "site-packages" / "nvidia"
    expected = [str(nvidia / part) for part in ("cu13/bin/x86_64", "cublas/bin", "cuda_runtime/bin")]
    assert added == expected
    assert os.environ["PATH"].split(os.pathsep) == [*expected, "what was there"]


def test_where_there_are_none_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "add_dll_directory", lambda folder: pytest.fail(folder), raising=False)
    monkeypatch.setenv("PATH", "what was there")
    dlls.make_found(tmp_path)
    assert os.environ["PATH"] == "what was there"
