"""The build tools that are here: compilers and what drives them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.survey import probe
from paceline.survey.answers import stamp
from paceline.survey.facts import Fact

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paceline.survey.answers import Answers

# Tool -> (environment variables that name it, commands that are it). `c++` and `cc` mean any compiler of the language.
KNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "c++": (("CXX",), ("c++", "g++", "clang++", "cl")),
    "cc": (("CC",), ("cc", "gcc", "clang", "cl")),
    "g++": ((), ("g++",)),
    "clang++": ((), ("clang++",)),
    "gcc": ((), ("gcc",)),
    "clang": ((), ("clang",)),
    "cl": ((), ("cl",)),
    "clang-cl": ((), ("clang-cl",)),
    "cmake": ((), ("cmake",)),
    "ninja": ((), ("ninja", "ninja-build")),
    "make": ((), ("make", "gmake", "nmake")),
    "git": ((), ("git",)),
    "nvcc": (("CUDACXX",), ("nvcc",)),
    "hipcc": ((), ("hipcc",)),
    "cargo": ((), ("cargo",)),
    "go": ((), ("go",)),
}
_CUDA_FOLDERS = ("CUDA_HOME", "CUDA_PATH")
_MICROSOFT = ("c++", "cc", "cl")


def tools(environ: Mapping[str, str]) -> Fact[Mapping[str, Path | None]]:
    """Where each known build tool is, or None for one that is not here."""
    path = environ.get("PATH", os.defpath)
    found = {name: _find(name, environ, path) for name in KNOWN}
    return Fact(found, "PATH, CXX, CC, CUDACXX, CUDA_HOME, CUDA_PATH")


def tool_versions(found: Mapping[str, Path | None], answers: Answers, timeout_s: float) -> Fact[Mapping[str, str]]:
    """The version of nvcc, which decides what CUDA a build links; each program is asked once and then remembered."""
    nvcc = found.get("nvcc")
    if nvcc is None:
        return Fact({}, "no tool is here whose version decides")
    said, since = answers.get("nvcc", stamp(nvcc), lambda: _version_of_nvcc(nvcc, timeout_s))
    source = f"{nvcc} --version" + (f", asked {since}" if since else "")
    return Fact({"nvcc": said}, source) if isinstance(said, str) else Fact(None, f"{source}: no version in its answer")


def _version_of_nvcc(nvcc: Path, timeout_s: float) -> str | None:
    """`Cuda compilation tools, release 12.4, V12.4.131`."""
    found = re.search(r"\brelease (\d+\.\d+)", probe.run([str(nvcc), "--version"], timeout_s).text)
    return found.group(1) if found else None


def _find(name: str, environ: Mapping[str, str], path: str) -> Path | None:
    variables, commands = KNOWN[name]
    # CXX may be "ccache g++": the first word is the program.
    named = [environ[v].split()[0] for v in variables if environ.get(v, "").strip()]
    for command in (*named, *commands):
        program = shutil.which(command, path=path)
        if program is not None and not _is_placeholder(program):
            return Path(program)
    if name == "nvcc":
        folders = [environ[v] for v in _CUDA_FOLDERS if environ.get(v)] + ["/usr/local/cuda"]
        program = shutil.which("nvcc", path=os.pathsep.join(str(Path(folder, "bin")) for folder in folders))
        return Path(program) if program else None
    if sys.platform == "win32" and name in _MICROSOFT:
        return _visual_studio()
    return None


def _is_placeholder(program: str) -> bool:
    """macOS has /usr/bin/c++ on every machine; without the developer tools it only offers to install them."""
    return sys.platform == "darwin" and program.startswith("/usr/bin/") and not _developer_tools()


@cache
def _developer_tools() -> bool:
    return probe.run(["/usr/bin/xcode-select", "-p"], timeout_s=10).failure is None


@cache
def _visual_studio() -> Path | None:
    """The newest Visual Studio with a C++ compiler: build tools find it themselves, it is not on PATH."""
    programs = os.environ.get("PROGRAMFILES(X86)", r"C:\Program Files (x86)")
    finder = Path(programs, "Microsoft Visual Studio", "Installer", "vswhere.exe")
    component = "Microsoft.VisualStudio.Component.VC.Tools.x86.x64"
    argv = [str(finder), "-latest", "-products", "*", "-requires", component, "-property", "installationPath"]
    output = probe.run(argv, timeout_s=10)
    return Path(output.text.strip()) if output.failure is None and output.text.strip() else None
