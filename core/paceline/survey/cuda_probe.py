"""A program, not a module of the host: ask NVIDIA's driver libraries and print one JSON object.

    python -I cuda_probe.py version|devices

Run in a process of its own because a driver that is broken, or newer than its kernel module, can hang or crash
whoever loads it. Keys: `cuda` (cuDriverGetVersion: 12040 is 12.4), `driver` (NVML), `devices`, `error`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from typing import Any

_CUDA = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1")
_NVML = ("nvml.dll",) if sys.platform == "win32" else ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
_ERROR_NO_DEVICE = 100
_ATTRIBUTE_CAPABILITY_MAJOR = 75
_ATTRIBUTE_CAPABILITY_MINOR = 76


def main(what: str) -> None:
    answer: dict[str, Any] = {}
    library, error = _load(_CUDA)
    if library is None:
        answer["error"] = error
    else:
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0:
            answer["cuda"] = version.value
        if what == "devices":
            _devices(library, answer)
    if what == "devices":
        answer["driver"] = _driver()
    print(json.dumps(answer))


def _load(names: tuple[str, ...]) -> tuple[Any, str]:
    error = ""
    for name in names:
        try:
            return ctypes.CDLL(name), ""
        except OSError as problem:
            error = error or str(problem)
    return None, error


def _devices(library: Any, answer: dict[str, Any]) -> None:
    status = library.cuInit(0)
    if status == _ERROR_NO_DEVICE:
        answer["devices"] = []
        return
    count = ctypes.c_int()
    status = status or library.cuDeviceGetCount(ctypes.byref(count))
    if status:
        answer["error"] = f"CUDA error {status}"
        return
    answer["devices"] = [_device(library, index) for index in range(count.value)]


def _device(library: Any, index: int) -> dict[str, Any]:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    sized = library.cuDeviceTotalMem_v2(ctypes.byref(memory), device) == 0
    known = library.cuDeviceGetAttribute(ctypes.byref(major), _ATTRIBUTE_CAPABILITY_MAJOR, device) == 0
    known = library.cuDeviceGetAttribute(ctypes.byref(minor), _ATTRIBUTE_CAPABILITY_MINOR, device) == 0 and known
    return {
        "name": name.value.decode("utf-8", "replace"),
        "memory": memory.value if sized else None,
        "capability": f"{major.value}.{minor.value}" if known else None,
    }


def _driver() -> str | None:
    library, _ = _load(_NVML)
    if library is None or library.nvmlInit_v2() != 0:
        return None
    version = ctypes.create_string_buffer(96)
    known = library.nvmlSystemGetDriverVersion(version, len(version)) == 0
    library.nvmlShutdown()
    return version.value.decode("ascii", "replace") if known else None


if __name__ == "__main__":
    main(sys.argv[1])
