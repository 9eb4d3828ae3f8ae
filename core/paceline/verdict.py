"""Can this machine run that release? A pure function of the release's requirements and the survey.

The checks run from what is most basic to what is most specific, and the first that fails is the answer, so nobody
is told to update a driver for a card that is too old in any case:

    host version -> operating system -> its version -> architecture -> C library -> CPU features
    -> GPU (make, compute capability, driver) -> Python -> build tools

`incompatibleBackendVersion` means here that the Python which runtimes are built on is not one the release can use.
A fact that is unknown is never taken for a refusal or a pass: it has statuses of its own.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

import paceline
from paceline.install_hints import how_to_install
from paceline.preferences import is_of
from paceline.survey.overrides import PREFIX
from paceline.types import Compatibility, Verdict
from paceline.versions import at_least, numbers, order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from paceline.survey.facts import Fact, Gpu, Survey
    from paceline.types import GpuRequirement, Release

_OS_NAMES = {"linux": "Linux", "macos": "macOS", "windows": "Windows"}
_MAKES = {"nvidia": "NVIDIA", "apple": "Apple", "amd": "AMD", "intel": "Intel"}
_OTHER_RELEASE = "choose a release for this machine: `paceline runtime survey` shows what was found"


def judge(release: Release, survey: Survey) -> Verdict:
    """The first requirement of `release` that the machine does not meet, or `compatible`. Never raises."""
    for check in _CHECKS:
        try:
            verdict = check(release, survey)
        except Exception as error:
            return Verdict(
                Compatibility.ERROR_CHECKING_COMPATIBILITY,
                f"{release.id} could not be checked: {error} ({type(error).__name__} in {check.__name__.strip('_')})",
                "the requirements of this release cannot be read: report it to whoever provides the release",
            )
        if verdict is not None:
            return verdict
    return Verdict(Compatibility.COMPATIBLE, f"this machine can run {release.id}")


def rank(releases: Iterable[Release], survey: Survey, *, channel: str = "stable") -> list[tuple[Release, Verdict]]:
    """Every release with its verdict: compatible ones first, of them those of `channel`, then by rank, newest first.

    The channel `beta`, or `nightly`, holds everything; where `stable` is asked for, whatever is of another channel
    comes after all that is stable.
    """
    judged = [(release, judge(release, survey)) for release in releases]
    judged.sort(key=lambda pair: pair[0].id)
    judged.sort(key=lambda pair: order(pair[0].version), reverse=True)
    judged.sort(key=lambda pair: (not pair[1].ok, not is_of(channel, pair[0]), -pair[0].rank))
    fitting = [release for release, verdict in judged if verdict.ok]
    return [(release, _with_alternative(release, verdict, fitting)) for release, verdict in judged]


def _with_alternative(release: Release, verdict: Verdict, fitting: Sequence[Release]) -> Verdict:
    """`verdict` with the best release that runs here named in its help: of the same engine, else of the same format."""
    same = [r for r in fitting if r.engine == release.engine] or [
        r for r in fitting if set(r.formats) & set(release.formats)
    ]
    if verdict.ok or not same:
        return verdict
    best = same[0]
    if best.recipe.unpinned:
        way_out = f"or use {best.id}, which this machine can run, with --allow-unpinned"
    else:
        way_out = f"use {best.id}, which this machine can run"
    return replace(verdict, help=f"{verdict.help}; {way_out}")


def _host_version(release: Release, survey: Survey) -> Verdict | None:
    floor = release.requires.min_host
    if floor is None or Version(paceline.__version__) >= Version(floor):
        return None
    return Verdict(
        Compatibility.INCOMPATIBLE_APP_VERSION,
        f"{release.id} needs Paceline {floor} or newer; this is {paceline.__version__}",
        "update Paceline (`pip install --upgrade paceline`), or choose an older version of the release",
    )


def _os(release: Release, survey: Survey) -> Verdict | None:
    needed, found = release.requires.os, survey.os
    if needed is None or needed == found.value:
        return None
    if found.value is None:
        return _unknown(Compatibility.ERROR_SURVEYING_HARDWARE, release, "the operating system", "os", found)
    return Verdict(
        Compatibility.INCOMPATIBLE_PLATFORM,
        f"{release.id} needs {_os_name(needed)}; this machine runs {_os_name(found.value)}",
        _OTHER_RELEASE,
    )


def _os_version(release: Release, survey: Survey) -> Verdict | None:
    floor, found = release.requires.min_os_version, survey.os_version
    if floor is None:
        return None
    system = _os_name(release.requires.os or survey.os.value)
    least = numbers(floor)
    if found.value is None or not found.value[:1].isdigit():
        return _unknown(
            Compatibility.ERROR_SURVEYING_HARDWARE, release, f"the version of {system}", "os_version", found
        )
    if numbers(found.value) >= least:
        return None
    return Verdict(
        Compatibility.INCOMPATIBLE_PLATFORM,
        f"{release.id} needs {system} {floor} or newer; this machine runs {system} {found.value}",
        f"update {system}, or choose an older version of the release",
    )


def _arch(release: Release, survey: Survey) -> Verdict | None:
    needed, found = release.requires.arch, survey.arch
    if needed is None or needed == found.value:
        return None
    if found.value is None:
        return _unknown(Compatibility.CPU_SURVEY_UNSUCCESSFUL, release, "the CPU architecture", "arch", found)
    return Verdict(
        Compatibility.INVALID_CPU_ARCHITECTURE,
        f"{release.id} is built for {needed}; programs run as {found.value} here ({found.source})",
        f"{_OTHER_RELEASE}; where the processor is {needed}, run Paceline with a Python built for {needed}",
    )


def _libc(release: Release, survey: Survey) -> Verdict | None:
    floor, found = release.requires.min_glibc, survey.libc
    if floor is None or survey.os.value not in ("linux", None):
        return None
    if found.value is None:
        return _unknown(Compatibility.ERROR_SURVEYING_HARDWARE, release, "the C library", "libc", found)
    if found.value.family != "glibc":
        return Verdict(
            Compatibility.MISSING_LIBRARIES,
            f"{release.id} needs the C library glibc {floor} or newer; this machine has {found.value}",
            "choose a release that is built from source, or run Paceline on a distribution that uses glibc",
        )
    version = found.value.version
    # Distributions append to the number (2.35-0ubuntu3): its start is what counts.
    for text, whose in ((floor, release.id), (version or "", f"this machine ({found.source})")):
        if not re.match(r"\d+\.\d+", text):
            return Verdict(
                Compatibility.INVALID_LIBRARY_VERSION_FORMAT,
                f"the glibc version {text!r} of {whose} cannot be read",
                f"set {PREFIX}LIBC to the version that `ldd --version` prints, such as `glibc 2.36`",
            )
    if version is None or at_least(version, floor):
        return None
    return Verdict(
        Compatibility.LIBRARY_OUTDATED,
        f"{release.id} needs glibc {floor} or newer; this machine has {version}",
        "choose a release that is built from source, or update the operating system",
    )


def _cpu_features(release: Release, survey: Survey) -> Verdict | None:
    needed, found = release.requires.cpu_features, survey.cpu_features
    if not needed:
        return None
    if found.value is None:
        return _unknown(
            Compatibility.CPU_SURVEY_UNSUCCESSFUL, release, "which extensions the CPU has", "cpu_features", found
        )
    missing = [feature for feature in needed if feature.lower() not in found.value]
    if not missing:
        return None
    return Verdict(
        Compatibility.INVALID_CPU_INSTRUCTION_SET_EXTENSIONS,
        f"{release.id} needs the CPU features {', '.join(needed)}; this processor lacks {', '.join(missing)}",
        "choose a release that is built from source: it uses the features that are here",
    )


def _gpu(release: Release, survey: Survey) -> Verdict | None:
    needed, found = release.requires.gpu, survey.gpus
    if needed is None:
        return None
    make = _MAKES.get(needed.make, needed.make)
    if found.value is None:
        return _unknown(Compatibility.GPU_SURVEY_UNSUCCESSFUL, release, "which GPUs are here", "gpus", found)
    if not found.value:
        return Verdict(
            Compatibility.GPU_REQUIRED_BUT_NONE_FOUND,
            f"{release.id} needs {_article(make)} GPU; none was found",
            f"install the {make} driver if there is such a card (in a container, pass the GPU through), "
            "or choose a release for the CPU; `paceline runtime survey` shows where was looked",
        )
    candidates = [gpu for gpu in found.value if gpu.make == needed.make]
    if not candidates:
        names = ", ".join(gpu.name for gpu in found.value)
        return Verdict(
            Compatibility.NO_SUPPORTED_GPUS,
            f"{release.id} needs {_article(make)} GPU; this machine has {names}",
            "choose a release for this GPU, or one for the CPU",
        )
    return (
        _capability(release, needed, candidates)
        or _driver(release, needed, survey)
        or _capability_unknown(release, needed, candidates)
    )


def _capability(release: Release, needed: GpuRequirement, candidates: list[Gpu]) -> Verdict | None:
    """Refuses when every card's compute capability is known and out of bounds."""
    low, high = needed.min_compute_capability, needed.max_compute_capability
    if any(gpu.compute_capability is None or _within(gpu.compute_capability, low, high) for gpu in candidates):
        return None
    cards = ", ".join(f"{gpu.name} has {gpu.compute_capability}" for gpu in candidates)
    return Verdict(
        Compatibility.NO_SUPPORTED_GPUS,
        f"{release.id} needs compute capability {_bounds(low, high)}; {cards}",
        "choose a release for another CUDA version, or one for the CPU",
    )


def _driver(release: Release, needed: GpuRequirement, survey: Survey) -> Verdict | None:
    floor, found = needed.min_driver, survey.nvidia_driver
    if floor is None:
        return None
    if needed.make != "nvidia":
        raise ValueError(f"a driver version is required of {needed.make}, and only NVIDIA's is surveyed")
    if found.value is None:
        unknown = _unknown(
            Compatibility.GPU_SURVEY_UNSUCCESSFUL, release, "the version of the GPU's driver", "nvidia_driver", found
        )
        way_out = "install the NVIDIA driver, or repair it (`nvidia-smi` must list the GPU)"
        return Verdict(unknown.status, unknown.message, f"{way_out}; {unknown.help}")
    if at_least(found.value, floor):
        return None
    cuda = re.search(r"cuda-?(\d+)", release.platform)
    needs = f"CUDA {cuda.group(1)}" if cuda else release.id
    return Verdict(
        Compatibility.GPU_DRIVER_UNSUPPORTED,
        f"driver {found.value} is older than {floor} that {needs} needs",
        f"update the NVIDIA driver to {floor} or newer, or choose a release for an older CUDA version",
    )


def _capability_unknown(release: Release, needed: GpuRequirement, candidates: list[Gpu]) -> Verdict | None:
    low, high = needed.min_compute_capability, needed.max_compute_capability
    if low is None and high is None:
        return None
    if any(gpu.compute_capability is not None and _within(gpu.compute_capability, low, high) for gpu in candidates):
        return None
    unknown = [gpu for gpu in candidates if gpu.compute_capability is None]
    return Verdict(
        Compatibility.GPU_TARGETS_REQUIRED_BUT_NONE_SPECIFIED,
        f"{release.id} needs compute capability {_bounds(low, high)}; that of {unknown[0].name} is not known",
        f"update the NVIDIA driver, or state the card: {PREFIX}GPUS='{unknown[0].make}:{unknown[0].name}:8.9'",
    )


def _python(release: Release, survey: Survey) -> Verdict | None:
    specifier, found = release.requires.python, survey.python_version
    if specifier is None:
        return None
    supported = SpecifierSet(specifier)
    if found.value is None:
        return _unknown(
            Compatibility.ERROR_SURVEYING_HARDWARE, release, "the version of Python", "python_version", found
        )
    if supported.contains(found.value, prereleases=True):
        return None
    return Verdict(
        Compatibility.INCOMPATIBLE_BACKEND_VERSION,
        f"{release.id} needs Python {specifier}; runtimes are built on Python {found.value} here ({found.source})",
        f"run Paceline with a Python {specifier}",
    )


def _tools(release: Release, survey: Survey) -> Verdict | None:
    needed, found = release.requires.tools, survey.tools
    if not needed:
        return None
    if found.value is None:
        return _unknown(Compatibility.ERROR_SURVEYING_HARDWARE, release, "which build tools are here", "tools", found)
    here = {name for name, path in found.value.items() if path is not None}
    groups = [[_tool(part)[0] for part in group.split("|") if part.strip()] for group in needed]
    lacking = [names for names in groups if not here.intersection(names)]
    absent = [names for names in lacking if all(name in found.value for name in names)]
    if absent:
        system = survey.os.value
        return Verdict(
            Compatibility.MISSING_LIBRARIES,
            f"{release.id} is built on this machine and needs {', '.join(' or '.join(n) for n in absent)}, not found "
            "on PATH",
            "install " + "; ".join(f"{names[0]}: {how_to_install(names[0], system)}" for names in absent),
        )
    if lacking:
        name = next(name for name in lacking[0] if name not in found.value)
        return Verdict(
            Compatibility.UNKNOWN,
            f"{release.id} is built on this machine and needs {' or '.join(lacking[0])}, which the survey does not "
            "look for",
            f"if it is here, say so by {PREFIX}TOOLS, with the other tools: '{','.join([*sorted(here), name])}'",
        )
    return _tool_versions(release, survey, here)


def _tool_versions(release: Release, survey: Survey, here: set[str]) -> Verdict | None:
    """Refuses when no tool of a group that is here has a version the release can be built with."""
    for group in release.requires.tools:
        found = [(name, wanted) for name, wanted in map(_tool, group.split("|")) if name in here]
        if any(wanted is None for _, wanted in found):
            continue
        versions = survey.tool_versions
        known = [(name, wanted, (versions.value or {}).get(name)) for name, wanted in found]
        if any(wanted.contains(version, prereleases=True) for _, wanted, version in known if wanted and version):
            continue
        name, wanted, version = known[0]
        if version is None:
            return _unknown(
                *(Compatibility.ERROR_SURVEYING_HARDWARE, release, f"the version of {name}", "tool_versions", versions)
            )
        older = all(Version(version) < Version(floor) for floor in re.findall(r">=\s*([\d.]+)", str(wanted)))
        return Verdict(
            Compatibility.LIBRARY_OUTDATED if older else Compatibility.MISSING_LIBRARIES,
            f"{release.id} is built on this machine and needs {name} {wanted}; the one here is {version} "
            f"({versions.source})",
            f"install that version of {name} and put it first on PATH, or choose a release for this one",
        )
    return None


def _tool(text: str) -> tuple[str, SpecifierSet | None]:
    """`nvcc>=13,<14` -> its name and the versions that will do."""
    name = re.split(r"[<>=!~]", text, maxsplit=1)[0]
    return name.strip(), SpecifierSet(text[len(name) :]) if len(name) < len(text) else None


_CHECKS: tuple[Callable[[Any, Any], Verdict | None], ...] = (
    *(_host_version, _os, _os_version, _arch, _libc, _cpu_features, _gpu, _python, _tools),
)


def _unknown(status: Compatibility, release: Release, what: str, fact: str, found: Fact[Any]) -> Verdict:
    return Verdict(
        status,
        f"{release.id} cannot be checked: {what} could not be found out ({found.source})",
        f"if you know it, set {PREFIX}{fact.upper()}; `paceline runtime survey` shows every fact and its source",
    )


def _within(capability: str, low: str | None, high: str | None) -> bool:
    value = numbers(capability)
    return (low is None or value >= numbers(low)) and (high is None or value <= numbers(high))


def _bounds(low: str | None, high: str | None) -> str:
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"{low} or higher" if low is not None else f"{high} or lower"


def _os_name(name: str | None) -> str:
    return _OS_NAMES.get(name or "", name or "the operating system")


def _article(make: str) -> str:
    return f"an {make}" if make[:1] in "AEIOUN" else f"a {make}"
