"""The processor: its name, its instruction set extensions, its cores."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

from paceline.processor import CPUINFO, cpuinfo_values, features_in_cpuinfo
from paceline.survey import probe
from paceline.survey.facts import Fact

_BOARD = Path("/sys/firmware/devicetree/base/model")
_SYSCTL = "/usr/sbin/sysctl"

# macOS names Intel's extensions its own way; what is not listed differs by case and dots alone.
_INTEL_ON_MACOS = {
    "avx1.0": "avx",
    "sse3": "pni",
    "lzcnt": "abm",
    "clfsh": "clflush",
    "rdwrfsgs": "fsgsbase",
    "avx512vnni": "avx512_vnni",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
}
# Arm's names of features, as macOS gives them, and the kernel's names of the same.
_ARM_ON_MACOS = {
    "FEAT_FP16": ("fphp", "asimdhp"),
    "FEAT_DotProd": ("asimddp",),
    "FEAT_FHM": ("asimdfhm",),
    "FEAT_RDM": ("asimdrdm",),
    "FEAT_I8MM": ("i8mm",),
    "FEAT_BF16": ("bf16",),
    "FEAT_SME": ("sme",),
    "FEAT_SME2": ("sme2",),
    "FEAT_LSE": ("atomics",),
    "FEAT_LRCPC": ("lrcpc",),
    "FEAT_FCMA": ("fcma",),
    "FEAT_JSCVT": ("jscvt",),
    "FEAT_CRC32": ("crc32",),
    "FEAT_AES": ("aes",),
    "FEAT_PMULL": ("pmull",),
    "FEAT_SHA1": ("sha1",),
    "FEAT_SHA256": ("sha2",),
    "FEAT_SHA512": ("sha512",),
    "FEAT_SHA3": ("sha3",),
}
# PF_* numbers of IsProcessorFeaturePresent (winnt.h).
_ON_WINDOWS = {
    10: ("sse2",),
    13: ("pni",),
    19: ("asimd", "fp"),
    30: ("aes", "pmull", "sha1", "sha2"),
    31: ("crc32",),
    34: ("atomics",),
    36: ("ssse3",),
    37: ("sse4_1",),
    38: ("sse4_2",),
    39: ("avx",),
    40: ("avx2",),
    41: ("avx512f",),
    43: ("asimddp",),
}
# Windows has no query for these. Every processor of these vendors that has AVX2 has them; other vendors' do not all.
_WITH_AVX2 = ("fma", "f16c", "bmi1", "bmi2", "movbe", "abm")
_AVX2_VENDORS = ("GenuineIntel", "AuthenticAMD")


def cpu_name() -> Fact[str]:
    """The processor as its maker calls it; on single-board computers, which do not say, the board."""
    if sys.platform == "darwin":
        return Fact(_sysctl().get("machdep.cpu.brand_string"), "sysctl machdep.cpu.brand_string")
    if sys.platform == "win32":
        return Fact(_windows_processor("ProcessorNameString"), "registry: CentralProcessor\\0\\ProcessorNameString")
    for name in cpuinfo_values(_read(CPUINFO), "model name"):
        return Fact(name, str(CPUINFO))
    board = _read(_BOARD).strip("\0\n ")
    return Fact(board or None, str(_BOARD) if board else f"no name in {CPUINFO} or {_BOARD}")


def cpu_features() -> Fact[frozenset[str]]:
    """The instruction set extensions that every core has."""
    if sys.platform == "darwin":
        features = features_on_macos(_sysctl())
        return Fact(features or None, "sysctl hw.optional, machdep.cpu" + ("" if features else ": no features"))
    if sys.platform == "win32":
        return _windows_features()
    features = features_in_cpuinfo(_read(CPUINFO))
    return Fact(features or None, str(CPUINFO) if features else f"no flags in {CPUINFO}")


def physical_cores() -> Fact[int]:
    """Cores, not hardware threads."""
    import psutil

    return Fact(psutil.cpu_count(logical=False), "psutil")


def features_on_macos(sysctl: dict[str, str]) -> frozenset[str]:
    """The extensions that sysctl names, by the names /proc/cpuinfo would use."""
    words = " ".join(sysctl.get(f"machdep.cpu.{key}", "") for key in ("features", "leaf7_features", "extfeatures"))
    intel = {_INTEL_ON_MACOS.get(word, word.replace(".", "_")) for word in words.lower().split()}
    arm: set[str] = set()
    if "1" in (sysctl.get("hw.optional.AdvSIMD"), sysctl.get("hw.optional.neon")):
        arm |= {"asimd", "fp"}
    for key, names in _ARM_ON_MACOS.items():
        if sysctl.get(f"hw.optional.arm.{key}") == "1":
            arm.update(names)
    return frozenset(intel | arm)


def parse_sysctl(text: str) -> dict[str, str]:
    """The lines `name: value` that sysctl prints."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


@cache
def _sysctl() -> dict[str, str]:
    return parse_sysctl(probe.run([_SYSCTL, "hw.optional", "machdep.cpu"], timeout_s=10).text)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _windows_processor(value: str) -> str | None:
    if sys.platform != "win32":
        return None
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return str(winreg.QueryValueEx(key, value)[0]).strip() or None
    except OSError:
        return None


def _windows_features() -> Fact[frozenset[str]]:
    if sys.platform != "win32":
        return Fact(None, "not Windows")
    import ctypes

    present = ctypes.windll.kernel32.IsProcessorFeaturePresent
    features = {name for number, names in _ON_WINDOWS.items() if present(number) for name in names}
    source = "IsProcessorFeaturePresent"
    vendor = _windows_processor("VendorIdentifier")
    if "avx2" in features and vendor in _AVX2_VENDORS:
        features.update(_WITH_AVX2)
        source += f"; {', '.join(_WITH_AVX2)} follow from avx2 on {vendor}"
    return Fact(frozenset(features) or None, source)
