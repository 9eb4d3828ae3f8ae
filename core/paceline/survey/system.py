"""The operating system, the architecture, the C library and the Python that run Paceline."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig

from paceline.survey import probe
from paceline.survey.facts import Fact, Libc

_SYSTEMS = {"linux": "linux", "darwin": "macos", "win32": "windows"}
_ARCHITECTURES = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "x64": "x86_64",
    "arm64": "arm64",
    "aarch64": "arm64",
}
_NARROW = {"x86_64": "x86", "arm64": "arm"}


def os_name() -> Fact[str]:
    """`linux`, `macos`, `windows`, or Python's own name of another system."""
    return Fact(_SYSTEMS.get(sys.platform, sys.platform), "sys.platform")


def os_version() -> Fact[str]:
    """macOS: the product version; Windows: major.minor.build; else the kernel release."""
    if sys.platform == "darwin":
        return _macos_version()
    if sys.platform == "win32":
        return Fact(platform.version() or None, "platform.version()")
    return Fact(platform.release() or None, "uname -r")


def arch() -> Fact[str]:
    """What this Python's programs run as, which decides what packages can be installed.

    It is less than the processor under a translator (Rosetta) or in a 32-bit userland on a 64-bit kernel.
    """
    if sys.platform == "win32":
        # platform.machine() names the processor, whatever this interpreter was built for.
        return Fact(normal_arch(sysconfig.get_platform().removeprefix("win-")), "sysconfig.get_platform()")
    name = normal_arch(platform.machine())
    if sys.maxsize < 1 << 32 and name in _NARROW:
        return Fact(_NARROW[name], f"this Python is a 32-bit program on {name}")
    if sys.platform == "darwin" and name == "x86_64" and _translated():
        return Fact(name, "this Python is an Intel program that Rosetta translates; the processor is arm64")
    return Fact(name or None, "uname -m")


def libc() -> Fact[Libc]:
    """glibc or musl with its version; absent on anything but Linux."""
    if sys.platform != "linux":
        return Fact(None, f"{os_name().value} has neither glibc nor musl")
    try:
        words = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
    except (ValueError, OSError):
        words = []
    if len(words) == 2 and words[0] == "glibc":
        return Fact(Libc("glibc", words[1]), "confstr CS_GNU_LIBC_VERSION")
    return _musl()


def python_version() -> Fact[str]:
    return Fact(platform.python_version(), sys.executable or "sys.version")


def normal_arch(name: str) -> str:
    """`AMD64` -> `x86_64`, `aarch64` -> `arm64`; others in lower case."""
    return _ARCHITECTURES.get(name.lower(), name.lower())


def _musl() -> Fact[Libc]:
    """musl has no query: packaging reads the interpreter's ELF header and asks the loader it names."""
    from packaging.tags import platform_tags

    for tag in platform_tags():
        if tag.startswith("musllinux_"):
            major, minor = tag.split("_")[1:3]
            return Fact(Libc("musl", f"{major}.{minor}"), "the loader of this Python")
    family, version = platform.libc_ver()
    if family:
        return Fact(Libc(family, version or None), "platform.libc_ver()")
    return Fact(None, "neither confstr CS_GNU_LIBC_VERSION nor a musl loader nor a glibc symbol in this Python")


def _macos_version() -> Fact[str]:
    version = platform.mac_ver()[0]
    if version and version != "10.16":
        return Fact(version, "platform.mac_ver()")
    # A Python built against an old SDK is told 10.16 on every macOS since 11.
    environ = {**os.environ, "SYSTEM_VERSION_COMPAT": "0"}
    output = probe.run(["/usr/bin/sw_vers", "-productVersion"], timeout_s=10, environ=environ)
    return Fact(output.text.strip() or None, "sw_vers" + (f": {output.failure}" if output.failure else ""))


def _translated() -> bool:
    return probe.run(["/usr/sbin/sysctl", "-n", "sysctl.proc_translated"], timeout_s=10).text.strip() == "1"
