"""Facts given by the environment in place of the machine's own.

`PACELINE_OVERRIDE_<FACT>` replaces one fact, for machines that are not here, for tests, and where a probe is wrong.
An empty value means "absent" (no GPU, no feature, no driver); `unknown` means that the fact could not be found. An
overridden fact is not probed. A value that does not fit the syntax, and a name that is no fact, is an error.

    variable           syntax                                               example
    OS                 linux | macos | windows                              macos
    OS_VERSION         starts with a number                                 14.5
    ARCH               a name of an architecture                            arm64
    LIBC               glibc VERSION | musl VERSION                         glibc 2.17
    CPU_NAME           any text                                             Apple M2
    CPU_FEATURES       names as in /proc/cpuinfo, by commas                 avx,avx2,fma,f16c
    PHYSICAL_CORES     a whole number above 0                               8
    MEMORY_TOTAL       bytes, or with a unit: KB MB GB TB KiB MiB GiB TiB   16GiB
    MEMORY_AVAILABLE   as MEMORY_TOTAL                                      3.5GiB
    GPUS               MAKE:NAME:COMPUTE CAPABILITY:MEMORY, by semicolons   nvidia:NVIDIA GeForce RTX 4090:8.9:24GiB
                       MAKE is nvidia, apple, amd or intel; the last two
                       fields may be empty (not known) or left out
    NVIDIA_DRIVER      dotted numbers                                       550.54.14
    CUDA_VERSION       dotted numbers                                       12.4
    PYTHON_VERSION     a PEP 440 version                                    3.12.4
    TOOLS              NAME or NAME=PATH, by commas; every known tool       c++=/usr/bin/g++,cmake
                       that is not named is absent
    TOOL_VERSIONS      NAME=VERSION, by commas                              nvcc=12.4
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from paceline.errors import UsageError
from paceline.survey.facts import Fact, Gpu, Libc
from paceline.survey.system import normal_arch
from paceline.survey.tools import KNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "PACELINE_OVERRIDE_"
UNKNOWN = "unknown"

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def read_overrides(environ: Mapping[str, str]) -> dict[str, Fact[Any]]:
    """The overridden facts, by the names of `Survey`'s fields. Raises UsageError naming variable and syntax."""
    facts = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in _OVERRIDES:
            raise _no_such_fact(variable, name)
        parse, syntax, absent = _OVERRIDES[name]
        text = environ[variable].strip()
        if text == "":
            facts[name] = Fact(absent, f"{variable} (absent)")
        elif text.lower() == UNKNOWN:
            facts[name] = Fact(None, f"{variable} (unknown)")
        else:
            try:
                facts[name] = Fact(parse(text), variable)
            except ValueError as error:
                raise UsageError(
                    f"{variable}={text!r}: {error}",
                    help=f"{variable} takes {syntax}; empty for absent, {UNKNOWN} for not known",
                ) from error
    return facts


def _no_such_fact(variable: str, name: str) -> UsageError:
    near = difflib.get_close_matches(name, _OVERRIDES, n=1)
    guess = f"did you mean {PREFIX}{near[0].upper()}? " if near else ""
    names = ", ".join(sorted(known.upper() for known in _OVERRIDES))
    return UsageError(f"{variable} overrides no fact of the survey", help=f"{guess}facts: {names}")


def _os(text: str) -> str:
    if text.lower() not in ("linux", "macos", "windows"):
        raise ValueError("no such operating system")
    return text.lower()


def _numbered(text: str) -> str:
    if not text[0].isdigit():
        raise ValueError("a version starts with a digit")
    return text


def _dotted(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)*", text):
        raise ValueError("not numbers with dots between them")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"\w+", text):
        raise ValueError("not a single word")
    return normal_arch(text)


def _libc(text: str) -> Libc:
    family, _, version = text.partition(" ")
    if family not in ("glibc", "musl") or not re.fullmatch(r"\S+", version):
        raise ValueError("not a C library and its version")
    # The version is free: that a C library's version may be unreadable is one of the things to try.
    return Libc(family, version)


def _features(text: str) -> frozenset[str]:
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ValueError(f"{name!r} is no name of a feature")
    return frozenset(names)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("not a whole number above 0")
    return int(text)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B|)", text)
    if found is None or found.group(2) not in _UNITS:
        raise ValueError("not a size")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def _gpus(text: str) -> tuple[Gpu, ...]:
    return tuple(_gpu(entry.strip()) for entry in text.split(";"))


def _gpu(text: str) -> Gpu:
    fields = [field.strip() for field in text.split(":")]
    if not 2 <= len(fields) <= 4:
        raise ValueError(f"{text!r} has {len(fields)} of the 2 to 4 fields of a GPU")
    make, name, capability, memory = fields + [""] * (4 - len(fields))
    make = make.lower()
    if make not in ("nvidia", "apple", "amd", "intel"):
        raise ValueError(f"{make!r} is no make of a GPU")
    if not name:
        raise ValueError(f"{text!r} names no GPU")
    return Gpu(
        make,
        name,
        memory_bytes=_size(memory) if memory else None,
        compute_capability=_dotted(capability) if capability else None,
        unified=make == "apple",
    )


def _python(text: str) -> str:
    try:
        return str(Version(text))
    except InvalidVersion:
        raise ValueError("not a version of Python") from None


def _tools(text: str) -> dict[str, Path | None]:
    found: dict[str, Path | None] = dict.fromkeys(KNOWN)
    for entry in text.split(","):
        name, separator, path = (part.strip() for part in entry.partition("="))
        if not name or (separator and not path):
            raise ValueError(f"{entry.strip()!r} is neither NAME nor NAME=PATH")
        found[name] = Path(path or name)
    return found


def _tool_versions(text: str) -> dict[str, str]:
    pairs = [tuple(part.strip() for part in entry.partition("=")) for entry in text.split(",")]
    for name, separator, version in pairs:
        if not (name and separator and re.fullmatch(r"\d+(\.\d+)*", version)):
            raise ValueError(f"{name + separator + version!r} is not NAME=VERSION")
    return {name: version for name, _, version in pairs}


_VERSION = "numbers with dots between them, such as 550.54.14"
_SIZE = "bytes, or a number with a unit such as 16GiB"

# Fact -> (parser, its syntax for people, what an empty value stands for).
_OVERRIDES: dict[str, tuple[Callable[[str], object], str, object]] = {
    "os": (_os, "linux, macos or windows", None),
    "os_version": (_numbered, "a version such as 14.5", None),
    "arch": (_word, "an architecture such as x86_64 or arm64", None),
    "libc": (_libc, "`glibc VERSION` or `musl VERSION`, such as `glibc 2.17`", None),
    "cpu_name": (str, "any text", None),
    "cpu_features": (_features, "names separated by commas, such as avx,avx2,fma", frozenset()),
    "physical_cores": (_count, "a whole number above 0", None),
    "memory_total": (_size, _SIZE, None),
    "memory_available": (_size, _SIZE, None),
    "gpus": (
        _gpus,
        "MAKE:NAME[:COMPUTE CAPABILITY[:MEMORY]] separated by semicolons, such as "
        "nvidia:NVIDIA GeForce RTX 4090:8.9:24GiB (makes: nvidia, apple, amd, intel)",
        (),
    ),
    "nvidia_driver": (_dotted, _VERSION, None),
    "cuda_version": (_dotted, _VERSION, None),
    "python_version": (_python, "a version such as 3.12.4", None),
    "tools": (_tools, "NAME or NAME=PATH separated by commas, such as c++=/usr/bin/g++,cmake", dict.fromkeys(KNOWN)),
    "tool_versions": (_tool_versions, "NAME=VERSION separated by commas, such as nvcc=12.4", {}),
}
