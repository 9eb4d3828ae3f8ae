"""Fakes that are real: executables and shared libraries in a folder of the test's own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LIBCUDA = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuInit(unsigned flags) {
    const char *mode = getenv("FAKE_CUDA");
    if (getenv("CUDA_VISIBLE_DEVICES")) return 100;
    if (!mode) return 0;
    if (!strcmp(mode, "hang")) sleep(600);
    if (!strcmp(mode, "crash")) abort();
    return atoi(mode);
}
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Fake GPU %d", device); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device + 1) << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 + device : 6;
    return 0;
}
"""
LIBNVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "550.54.14", length); return 0; }
"""


@pytest.fixture
def environ() -> dict[str, str]:
    """This process's environment without anything that changes what a survey finds."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PACELINE_", "CUDA_", "FAKE_"))}


@pytest.fixture
def fake_smi(tmp_path, environ):
    """Put an executable `nvidia-smi` with the given shell body first on PATH."""
    if sys.platform == "win32":
        pytest.skip("the fake nvidia-smi is a shell script")

    def make(body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        environ["PATH"] = f"{folder}{os.pathsep}{environ.get('PATH', os.defpath)}"
        return program

    return make


@pytest.fixture
def without_smi(tmp_path, environ) -> None:
    """A PATH on which there is no nvidia-smi."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environ["PATH"] = str(folder)


@pytest.fixture(scope="session")
def driver_libraries(tmp_path_factory) -> Path:
    """A folder with a `libcuda.so.1` of two GPUs and a `libnvidia-ml.so.1`, compiled for the test."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    for name, source in (("libcuda.so.1", LIBCUDA), ("libnvidia-ml.so.1", LIBNVML)):
        argv = [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(folder / name), "-"]
        subprocess.run(argv, input=source, text=True, check=True)
    return folder


@pytest.fixture
def fake_driver(driver_libraries, environ) -> None:
    """Let child processes find the compiled driver libraries."""
    environ["LD_LIBRARY_PATH"] = str(driver_libraries)


@pytest.fixture
def root(tmp_path) -> Path:
    """A file system of its own in which there is a sign of an NVIDIA driver."""
    sign = tmp_path / "root" / "dev" / "nvidiactl"
    sign.parent.mkdir(parents=True)
    sign.touch()
    return tmp_path / "root"
