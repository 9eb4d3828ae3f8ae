"""How a missing build tool is installed, in a sentence per operating system."""

from __future__ import annotations

_LINUX = {
    "c++": "`sudo apt install build-essential` (Debian, Ubuntu), `sudo dnf install gcc-c++ make` (Fedora), "
    "`sudo pacman -S base-devel` (Arch) or `apk add build-base` (Alpine)",
    "nvcc": "the CUDA toolkit: `sudo apt install nvidia-cuda-toolkit`, or https://developer.nvidia.com/cuda-downloads",
    "hipcc": "ROCm: https://rocm.docs.amd.com",
    "ninja": "`sudo apt install ninja-build`, or the package `ninja` of your system",
}
_MACOS = {
    "c++": "`xcode-select --install`",
    "cmake": "`brew install cmake`",
    "ninja": "`brew install ninja`",
}
_WINDOWS = {
    "c++": "the Visual Studio Build Tools with the workload “Desktop development with C++”: "
    "`winget install Microsoft.VisualStudio.2022.BuildTools`",
    "cmake": "`winget install Kitware.CMake`",
    "ninja": "`winget install Ninja-build.Ninja`",
    "git": "`winget install Git.Git`",
    "nvcc": "the CUDA toolkit: `winget install Nvidia.CUDA`",
}
# What comes in one package with the C++ compiler.
_COMPILERS = {"cc", "c++", "gcc", "g++", "clang", "clang++", "cl", "clang-cl"}


def how_to_install(tool: str, os: str | None) -> str:
    """What to run, or fetch, to have `tool` on `os` (`linux`, `macos`, `windows`; None where it is not known)."""
    hints = {"macos": _MACOS, "windows": _WINDOWS}.get(os or "linux", _LINUX)
    with_compiler = (
        tool in _COMPILERS or (os == "macos" and tool in ("git", "make")) or (os == "linux" and tool == "make")
    )
    name = "c++" if with_compiler else tool
    if name in hints:
        return hints[name]
    return f"`sudo apt install {tool}`, or the package of that name of your system" if os == "linux" else f"`{tool}`"
