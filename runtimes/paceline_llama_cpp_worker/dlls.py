"""CUDA's libraries on Windows, where no variable that the host sets leads a loader to those of a runtime.

They come as packages: CUDA 12's lie in `nvidia/cublas/bin`, `nvidia/cuda_runtime/bin` and so on, CUDA 13's in
`nvidia/cu13/bin/x86_64`.
"""

from __future__ import annotations

import os
from pathlib import Path


def folders(prefix: Path) -> list[Path]:
    """Where packages of the environment `prefix` keep CUDA's libraries."""
    packages = prefix / "Lib" / "site-packages" / "nvidia"
    return sorted({library.parent for library in packages.glob("*/bin/**/*.dll")})


def make_found(prefix: Path) -> None:
    """Have the loader look there before anywhere else, and in no folder of a toolkit that may move.

    llama-cpp-python loads its libraries with `winmode=0`, for which Windows heeds PATH and not what was added by
    `os.add_dll_directory`; other loaders heed that alone.
    """
    found = [str(folder) for folder in folders(prefix)]
    for folder in found:
        os.add_dll_directory(folder)  # type: ignore[attr-defined, unused-ignore]
    if found:
        os.environ["PATH"] = os.pathsep.join([*found, os.environ.get("PATH", "")])
