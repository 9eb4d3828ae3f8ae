"""Verdicts for machines that are not here, described by overrides alone."""

import dataclasses
import itertools
import os
from pathlib import Path

import pytest

from paceline import plugins
from paceline.errors import IncompatibleError, UnpinnedError
from paceline.manager import inventory
from paceline.preferences import Policy
from paceline.store import Store
from paceline.survey import Fact, Libc, take_survey
from paceline.survey.overrides import PREFIX
from paceline.types import Compatibility, GpuRequirement, Recipe, Release, Requirements
from paceline.verdict import judge, rank

LINUX = {
    "OS": "linux",
    "OS_VERSION": "6.1.0-13-amd64",
    "ARCH": "x86_64",
    "LIBC": "glibc 2.36",
    "CPU_NAME": "AMD Ryzen 9 7950X",
    "CPU_FEATURES": "sse4_2,avx,avx2,fma,f16c,bmi2",
    "PHYSICAL_CORES": "16",
    "MEMORY_TOTAL": "64GiB",
    "MEMORY_AVAILABLE": "48GiB",
    "GPUS": "",
    "NVIDIA_DRIVER": "",
    "CUDA_VERSION": "",
    "PYTHON_VERSION": "3.12.4",
    "TOOLS": "c++=/usr/bin/c++,cmake=/usr/bin/cmake",
    "TOOL_VERSIONS": "",
}
RTX_4090 = LINUX | {
    "GPUS": "nvidia:NVIDIA GeForce RTX 4090:8.9:24GiB",
    "NVIDIA_DRIVER": "580.65.06",
    "CUDA_VERSION": "13.0",
    "TOOLS": "c++,cmake,nvcc",
    "TOOL_VERSIONS": "nvcc=13.0",
}
OLD_DRIVER = RTX_4090 | {"NVIDIA_DRIVER": "550.54", "CUDA_VERSION": "12.4"}
TITAN_X = RTX_4090 | {"GPUS": "nvidia:NVIDIA GeForce GTX TITAN X:5.2:12GiB", "NVIDIA_DRIVER": "470.82"}
RADEON = LINUX | {"GPUS": "amd:Radeon RX 7900 XTX::24GiB"}
M2 = LINUX | {
    "OS": "macos",
    "OS_VERSION": "14.5",
    "ARCH": "arm64",
    "LIBC": "",
    "CPU_NAME": "Apple M2",
    "CPU_FEATURES": "asimd,asimddp",
    "GPUS": "apple:Apple M2::16GiB",
}
RASPBERRY = LINUX | {
    "ARCH": "aarch64",
    "CPU_NAME": "Raspberry Pi 5 Model B Rev 1.0",
    "CPU_FEATURES": "fp,asimd,asimddp",
    "MEMORY_TOTAL": "8GiB",
}
ALPINE = LINUX | {"LIBC": "musl 1.2"}
WINDOWS = LINUX | {"OS": "windows", "OS_VERSION": "10.0.22631", "LIBC": "", "TOOLS": ""}

WHEEL = Requirements(
    os="linux", arch="x86_64", min_glibc="2.28", cpu_features=("avx2", "fma", "f16c", "bmi2"), python=">=3.11,<3.15"
)
SOURCE = Requirements(os="linux", arch="x86_64", tools=("c++|g++", "cmake"))
CUDA12 = Requirements(
    os="linux",
    arch="x86_64",
    gpu=GpuRequirement("nvidia", min_driver="525.60.13", min_compute_capability="6.0", max_compute_capability="9.0"),
)
CUDA13 = Requirements(
    os="linux", arch="x86_64", gpu=GpuRequirement("nvidia", min_driver="580", min_compute_capability="7.5")
)
BUILT_WITH_CUDA13 = Requirements(tools=("c++", "nvcc>=13,<14"))
METAL = Requirements(os="macos", arch="arm64", min_os_version="14.0", gpu=GpuRequirement("apple"))


def a_release(requires=None, platform="linux-x86_64-cpu", version="1.0", **more):
    return Release("llama.cpp", version, platform, ("gguf",), requires or Requirements(), Recipe(), **more)


def a_survey(machine):
    return take_survey({f"PACELINE_OVERRIDE_{fact}": text for fact, text in machine.items()})


def verdict(machine, requires, platform="linux-x86_64-cpu"):
    return judge(a_release(requires, platform), a_survey(machine))


C = Compatibility
# Machine, requirements, platform, status, what the message must say, what the help must say.
CASES = {
    "asks for nothing": (LINUX, Requirements(), "any", C.COMPATIBLE, "this machine can run", None),
    "wheel": (LINUX, WHEEL, "linux", C.COMPATIBLE, "this machine can run", None),
    "source": (LINUX, SOURCE, "linux", C.COMPATIBLE, "this machine can run", None),
    "RTX 4090, CUDA 12": (RTX_4090, CUDA12, "linux-cuda12", C.COMPATIBLE, "can run", None),
    "RTX 4090, CUDA 13": (RTX_4090, CUDA13, "linux-cuda13", C.COMPATIBLE, "can run", None),
    "old driver, CUDA 12": (OLD_DRIVER, CUDA12, "linux-cuda12", C.COMPATIBLE, "can run", None),
    "Apple M2 on macOS 14": (M2, METAL, "mac", C.COMPATIBLE, "can run", None),
    "newer host": (
        LINUX,
        Requirements(min_host="99.0"),
        "any",
        C.INCOMPATIBLE_APP_VERSION,
        "needs Paceline 99.0 or newer; this is ",
        "update Paceline",
    ),
    "another system": (M2, WHEEL, "linux", C.INCOMPATIBLE_PLATFORM, "needs Linux; this machine runs macOS", "release"),
    "Metal on Linux": (LINUX, METAL, "mac", C.INCOMPATIBLE_PLATFORM, "needs macOS; this machine runs Linux", "release"),
    "Linux release on Windows": (WINDOWS, WHEEL, "linux", C.INCOMPATIBLE_PLATFORM, "runs Windows", "release"),
    "Apple M2 on macOS 13": (
        M2 | {"OS_VERSION": "13.7"},
        METAL,
        "mac",
        C.INCOMPATIBLE_PLATFORM,
        "needs macOS 14.0 or newer; this machine runs macOS 13.7",
        "update macOS",
    ),
    "old kernel": (
        LINUX | {"OS_VERSION": "5.9.1"},
        Requirements(min_os_version="5.15"),
        "any",
        C.INCOMPATIBLE_PLATFORM,
        "needs Linux 5.15 or newer",
        "update Linux",
    ),
    "Raspberry, x86 wheel": (
        RASPBERRY,
        WHEEL,
        "linux",
        C.INVALID_CPU_ARCHITECTURE,
        "is built for x86_64; programs run as arm64 here",
        "choose a release",
    ),
    "Raspberry, own release": (
        RASPBERRY,
        Requirements(os="linux", arch="arm64", min_glibc="2.28", cpu_features=("asimddp",)),
        "linux-arm64",
        C.COMPATIBLE,
        "can run",
        None,
    ),
    "musl": (
        ALPINE,
        WHEEL,
        "linux",
        C.MISSING_LIBRARIES,
        "needs the C library glibc 2.28 or newer",
        "built from source",
    ),
    "old glibc": (
        LINUX | {"LIBC": "glibc 2.17"},
        WHEEL,
        "linux",
        C.LIBRARY_OUTDATED,
        "needs glibc 2.28 or newer; this machine has 2.17",
        "update the operating system",
    ),
    "glibc by number": (LINUX | {"LIBC": "glibc 2.4"}, WHEEL, "linux", C.LIBRARY_OUTDATED, "has 2.4", "source"),
    "glibc with a suffix": (LINUX | {"LIBC": "glibc 2.35-0ubuntu3"}, WHEEL, "linux", C.COMPATIBLE, "can run", None),
    "glibc unreadable": (
        LINUX | {"LIBC": "glibc stable"},
        WHEEL,
        "linux",
        C.INVALID_LIBRARY_VERSION_FORMAT,
        "the glibc version 'stable' of this machine",
        "PACELINE_OVERRIDE_LIBC",
    ),
    "required glibc unreadable": (
        LINUX,
        Requirements(min_glibc="new"),
        "any",
        C.INVALID_LIBRARY_VERSION_FORMAT,
        "the glibc version 'new' of llama.cpp-any@1.0",
        "PACELINE_OVERRIDE_LIBC",
    ),
    "no AVX2": (
        LINUX | {"CPU_FEATURES": "sse4_2,avx"},
        WHEEL,
        "linux",
        C.INVALID_CPU_INSTRUCTION_SET_EXTENSIONS,
        "this processor lacks avx2, fma, f16c, bmi2",
        "built from source",
    ),
    "no GPU": (LINUX, CUDA12, "linux-cuda12", C.GPU_REQUIRED_BUT_NONE_FOUND, "needs an NVIDIA GPU; none", "driver"),
    "another make": (
        RADEON,
        CUDA12,
        "linux-cuda12",
        C.NO_SUPPORTED_GPUS,
        "needs an NVIDIA GPU; this machine has Radeon RX 7900 XTX",
        "choose a release for this GPU",
    ),
    "compute capability 5.2": (
        TITAN_X,
        CUDA12,
        "linux-cuda12",
        C.NO_SUPPORTED_GPUS,
        "needs compute capability 6.0 to 9.0; NVIDIA GeForce GTX TITAN X has 5.2",
        "for another CUDA version",
    ),
    "compute capability above": (
        RTX_4090 | {"GPUS": "nvidia:RTX 5090:12.0:32GiB"},
        CUDA12,
        "linux-cuda12",
        C.NO_SUPPORTED_GPUS,
        "RTX 5090 has 12.0",
        "for another CUDA version",
    ),
    "compute capability by number": (
        RTX_4090 | {"GPUS": "nvidia:RTX 5090:12.0:32GiB"},
        CUDA13,
        "linux-cuda13",
        C.COMPATIBLE,
        "can run",
        None,
    ),
    "one of two cards": (
        RTX_4090 | {"GPUS": "nvidia:GTX TITAN X:5.2;nvidia:RTX 4090:8.9"},
        CUDA12,
        "linux-cuda12",
        C.COMPATIBLE,
        "can run",
        None,
    ),
    "old driver": (
        OLD_DRIVER,
        CUDA13,
        "linux-x86_64-nvidia-cuda13",
        C.GPU_DRIVER_UNSUPPORTED,
        "driver 550.54 is older than 580 that CUDA 13 needs",
        "update the NVIDIA driver to 580 or newer",
    ),
    "driver by number": (
        RTX_4090 | {"NVIDIA_DRIVER": "535.104"},
        Requirements(gpu=GpuRequirement("nvidia", min_driver="535.9")),
        "any",
        C.COMPATIBLE,
        "can run",
        None,
    ),
    "driver of a release without CUDA in its name": (
        RTX_4090 | {"NVIDIA_DRIVER": "535.9"},
        Requirements(gpu=GpuRequirement("nvidia", min_driver="535.104")),
        "any",
        C.GPU_DRIVER_UNSUPPORTED,
        "driver 535.9 is older than 535.104 that llama.cpp-any@1.0 needs",
        "update the NVIDIA driver",
    ),
    "card without driver": (
        RTX_4090 | {"GPUS": "nvidia:NVIDIA graphics (PCI 10de 2684)", "NVIDIA_DRIVER": ""},
        CUDA12,
        "linux-cuda12",
        C.GPU_SURVEY_UNSUCCESSFUL,
        "the version of the GPU's driver could not be found out",
        "install the NVIDIA driver",
    ),
    "capability unknown": (
        RTX_4090 | {"GPUS": "nvidia:Some Card"},
        CUDA12,
        "linux-cuda12",
        C.GPU_TARGETS_REQUIRED_BUT_NONE_SPECIFIED,
        "that of Some Card is not known",
        "PACELINE_OVERRIDE_GPUS",
    ),
    "capability unknown, no bounds": (
        RTX_4090 | {"GPUS": "nvidia:Some Card"},
        Requirements(gpu=GpuRequirement("nvidia", min_driver="525")),
        "any",
        C.COMPATIBLE,
        "can run",
        None,
    ),
    "one card too old, one unknown": (
        RTX_4090 | {"GPUS": "nvidia:GTX TITAN X:5.2;nvidia:Some Card"},
        CUDA12,
        "linux-cuda12",
        C.GPU_TARGETS_REQUIRED_BUT_NONE_SPECIFIED,
        "that of Some Card is not known",
        "PACELINE_OVERRIDE_GPUS",
    ),
    "GPUs unknown": (
        LINUX | {"GPUS": "unknown"},
        CUDA12,
        "linux-cuda12",
        C.GPU_SURVEY_UNSUCCESSFUL,
        "which GPUs are here could not be found out (PACELINE_OVERRIDE_GPUS (unknown))",
        "PACELINE_OVERRIDE_GPUS",
    ),
    "CPU features unknown": (
        LINUX | {"CPU_FEATURES": "unknown"},
        WHEEL,
        "linux",
        C.CPU_SURVEY_UNSUCCESSFUL,
        "which extensions the CPU has could not be found out",
        "PACELINE_OVERRIDE_CPU_FEATURES",
    ),
    "architecture unknown": (
        LINUX | {"ARCH": "unknown"},
        WHEEL,
        "linux",
        C.CPU_SURVEY_UNSUCCESSFUL,
        "the CPU architecture",
        "PACELINE_OVERRIDE_ARCH",
    ),
    "system unknown": (LINUX | {"OS": ""}, WHEEL, "linux", C.ERROR_SURVEYING_HARDWARE, "operating system", "_OS"),
    "system version unknown": (
        M2 | {"OS_VERSION": ""},
        METAL,
        "mac",
        C.ERROR_SURVEYING_HARDWARE,
        "the version of macOS could not be found out",
        "PACELINE_OVERRIDE_OS_VERSION",
    ),
    "libc unknown": (LINUX | {"LIBC": ""}, WHEEL, "linux", C.ERROR_SURVEYING_HARDWARE, "the C library", "_LIBC"),
    "libc elsewhere": (M2, Requirements(min_glibc="2.28"), "any", C.COMPATIBLE, "can run", None),
    "Python unknown": (LINUX | {"PYTHON_VERSION": ""}, WHEEL, "linux", C.ERROR_SURVEYING_HARDWARE, "Python", "_PYTHON"),
    "tools unknown": (
        LINUX | {"TOOLS": "unknown"},
        SOURCE,
        "linux",
        C.ERROR_SURVEYING_HARDWARE,
        "build tools",
        "_TOOLS",
    ),
    "Python too new": (
        LINUX | {"PYTHON_VERSION": "3.15.0"},
        WHEEL,
        "linux",
        C.INCOMPATIBLE_BACKEND_VERSION,
        "needs Python >=3.11,<3.15; runtimes are built on Python 3.15.0 here",
        "run Paceline with a Python >=3.11,<3.15",
    ),
    "Python by number": (
        LINUX | {"PYTHON_VERSION": "3.9.1"},
        WHEEL,
        "linux",
        C.INCOMPATIBLE_BACKEND_VERSION,
        "Python 3.9.1",
        "run Paceline",
    ),
    "no compiler": (
        LINUX | {"TOOLS": "cmake"},
        SOURCE,
        "linux",
        C.MISSING_LIBRARIES,
        "needs c++ or g++, not found",
        "sudo apt install build-essential",
    ),
    "no tools at all": (
        LINUX | {"TOOLS": ""},
        SOURCE,
        "linux",
        C.MISSING_LIBRARIES,
        "needs c++ or g++, cmake, not found",
        "cmake: `sudo apt install cmake`",
    ),
    "the other tool of a group": (LINUX | {"TOOLS": "g++,cmake"}, SOURCE, "linux", C.COMPATIBLE, "can run", None),
    "the right nvcc": (RTX_4090, BUILT_WITH_CUDA13, "linux-cuda13", C.COMPATIBLE, "can run", None),
    "nvcc too old": (
        RTX_4090 | {"TOOL_VERSIONS": "nvcc=12.4"},
        BUILT_WITH_CUDA13,
        "linux-cuda13",
        C.LIBRARY_OUTDATED,
        "needs nvcc <14,>=13; the one here is 12.4 (PACELINE_OVERRIDE_TOOL_VERSIONS)",
        "choose a release for this one",
    ),
    "nvcc too new": (
        RTX_4090,
        Requirements(tools=("nvcc>=12,<13",)),
        "linux-cuda12",
        C.MISSING_LIBRARIES,
        "needs nvcc <13,>=12; the one here is 13.0",
        "install that version of nvcc",
    ),
    "another nvcc will do": (
        RTX_4090 | {"TOOLS": "nvcc,clang"},
        Requirements(tools=("nvcc>=14|clang",)),
        "any",
        C.COMPATIBLE,
        "can run",
        None,
    ),
    "nvcc that does not tell its version": (
        RTX_4090 | {"TOOL_VERSIONS": "unknown"},
        BUILT_WITH_CUDA13,
        "linux-cuda13",
        C.ERROR_SURVEYING_HARDWARE,
        "the version of nvcc could not be found out",
        "PACELINE_OVERRIDE_TOOL_VERSIONS",
    ),
    "no compiler on macOS": (
        M2 | {"TOOLS": ""},
        Requirements(tools=("c++|g++",)),
        "mac",
        C.MISSING_LIBRARIES,
        "needs c++ or g++",
        "xcode-select --install",
    ),
    "no compiler on Windows": (
        WINDOWS,
        Requirements(tools=("cl|clang-cl|g++",)),
        "windows",
        C.MISSING_LIBRARIES,
        "needs cl or clang-cl or g++",
        "winget install Microsoft.VisualStudio",
    ),
    "a tool nobody looks for": (
        LINUX,
        Requirements(tools=("c++", "zig")),
        "any",
        C.UNKNOWN,
        "needs zig, which the survey does not look for",
        "'c++,cmake,zig'",
    ),
    "a tool nobody looks for, declared": (
        LINUX | {"TOOLS": "zig=/opt/zig"},
        Requirements(tools=("zig",)),
        "any",
        C.COMPATIBLE,
        "can run",
        None,
    ),
    "host version unreadable": (
        LINUX,
        Requirements(min_host="soon"),
        "any",
        C.ERROR_CHECKING_COMPATIBILITY,
        "could not be checked: Invalid version: 'soon'",
        "report it",
    ),
    "driver floor unreadable": (
        RTX_4090,
        Requirements(gpu=GpuRequirement("nvidia", min_driver="newest")),
        "any",
        C.ERROR_CHECKING_COMPATIBILITY,
        "'newest' does not start with a version number",
        "report it",
    ),
    "driver of another make": (
        RADEON,
        Requirements(gpu=GpuRequirement("amd", min_driver="6.0")),
        "any",
        C.ERROR_CHECKING_COMPATIBILITY,
        "only NVIDIA's is surveyed",
        "report it",
    ),
    "Python specifier unreadable": (
        LINUX,
        Requirements(python="recent"),
        "any",
        C.ERROR_CHECKING_COMPATIBILITY,
        "could not be checked",
        "report it",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case):
    machine, requires, platform, status, says, way_out = CASES[case]
    found = verdict(machine, requires, platform)
    assert found.status is status, found.message
    assert says in found.message
    assert found.ok is (status is C.COMPATIBLE)
    if way_out is None:
        assert found.help is None
    else:
        assert way_out in found.help


def test_every_status_is_reached():
    assert {status for _, _, _, status, _, _ in CASES.values()} == set(Compatibility)


# For each failing requirement, from the most basic to the most specific: what breaks it on LINUX, and its status.
ORDER = [
    ({"min_host": "99"}, C.INCOMPATIBLE_APP_VERSION),
    ({"os": "macos"}, C.INCOMPATIBLE_PLATFORM),
    ({"min_os_version": "99"}, C.INCOMPATIBLE_PLATFORM),
    ({"arch": "arm64"}, C.INVALID_CPU_ARCHITECTURE),
    ({"min_glibc": "2.99"}, C.LIBRARY_OUTDATED),
    ({"cpu_features": ("amx_int8",)}, C.INVALID_CPU_INSTRUCTION_SET_EXTENSIONS),
    ({"gpu": GpuRequirement("nvidia")}, C.GPU_REQUIRED_BUT_NONE_FOUND),
    ({"python": "<3"}, C.INCOMPATIBLE_BACKEND_VERSION),
    ({"tools": ("nvcc",)}, C.MISSING_LIBRARIES),
]


def test_every_field_of_requirements_is_checked():
    assert {name for broken, _ in ORDER for name in broken} == {f.name for f in dataclasses.fields(Requirements)}
    for broken, status in ORDER:
        assert verdict(LINUX, Requirements(**broken)).status is status


@pytest.mark.parametrize("pair", list(itertools.combinations(range(len(ORDER)), 2)))
def test_the_more_basic_failure_is_the_answer(pair):
    (first, status), (second, _) = ORDER[pair[0]], ORDER[pair[1]]
    assert verdict(LINUX, Requirements(**first, **second)).status is status


def test_a_card_that_is_too_old_in_any_case_is_told_before_the_driver():
    assert verdict(TITAN_X, CUDA13).status is C.NO_SUPPORTED_GPUS


def test_a_broken_survey_is_an_answer_too():
    survey = dataclasses.replace(a_survey(LINUX), libc=Fact(Libc("glibc", None), "half a fact"))
    assert judge(a_release(WHEEL), survey).status is C.INVALID_LIBRARY_VERSION_FORMAT
    survey = dataclasses.replace(survey, cpu_features=Fact(7, "nonsense"))
    assert judge(a_release(Requirements(cpu_features=("avx",))), survey).status is C.ERROR_CHECKING_COMPATIBILITY


def test_this_machine_can_run_what_asks_for_what_it_has():
    survey = take_survey({k: v for k, v in os.environ.items() if not k.startswith("PACELINE_")})
    asks = Requirements(os=survey.os.value, arch=survey.arch.value, python=">=3.11", min_host="0.0.1")
    assert judge(a_release(asks), survey).ok


def test_rank_puts_what_fits_first_and_the_best_of_it_foremost():
    releases = [
        a_release(CUDA13, "linux-cuda13", rank=300),
        a_release(CUDA12, "linux-cuda12", rank=200),
        a_release(platform="cpu", version="0.3.9", rank=100),
        a_release(platform="cpu", version="0.3.36", rank=100),
        a_release(platform="cpu", version="0.4.0", rank=100, channel="beta"),
        a_release(platform="cpu-b", version="b9999", rank=50),
        a_release(platform="cpu-b", version="b10000", rank=50),
        a_release(platform="cpu-c", version="9.0", rank=999, channel="nightly"),
    ]
    ranked = rank(releases, a_survey(OLD_DRIVER))
    assert [(r.platform, r.version, v.ok) for r, v in ranked] == [
        ("linux-cuda12", "1.0", True),
        ("cpu", "0.3.36", True),
        ("cpu", "0.3.9", True),
        ("cpu-b", "b10000", True),
        ("cpu-b", "b9999", True),
        ("cpu-c", "9.0", True),
        ("cpu", "0.4.0", True),
        ("linux-cuda13", "1.0", False),
    ]
    assert rank(reversed(releases), a_survey(OLD_DRIVER)) == ranked
    for asked in ("beta", "nightly"):
        best = [(r.platform, r.version) for r, _ in rank(releases, a_survey(OLD_DRIVER), channel=asked)]
        assert best[:3] == [("cpu-c", "9.0"), ("linux-cuda12", "1.0"), ("cpu", "0.4.0")]


def test_what_does_not_fit_is_refused_with_the_floor_the_value_and_what_fits():
    releases = [a_release(platform="cpu"), a_release(CUDA12, "linux-cuda12", rank=9), a_release(CUDA13, "linux-cuda13")]

    *_, (_, refused) = rank(releases, a_survey(OLD_DRIVER))
    assert refused.message == "driver 550.54 is older than 580 that CUDA 13 needs"
    assert refused.help.endswith("use llama.cpp-linux-cuda12@1.0, which this machine can run")
    ((_, refused),) = rank(releases[2:], a_survey(OLD_DRIVER))
    assert "which this machine can run" not in refused.help


class TestTheShippedReleases:
    """What a person is told of them on machines that overrides describe."""

    @pytest.fixture
    def get(self, tmp_path, monkeypatch):
        """Choose as `runtime get` does, on the machine that `facts` describe."""
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PACELINE_CACHE", str(tmp_path / "cache"))

        def get(facts, query=None, **options):
            for name, value in facts.items():
                monkeypatch.setenv(PREFIX + name, value)
            store, loaded = Store(tmp_path / "home"), plugins.load()
            return inventory.chosen(inventory.ranked(store, loaded, query), store, query, policy=Policy(**options))

        return get

    def test_what_the_query_does_not_mean_is_named_as_the_way_out(self, get):
        with pytest.raises(IncompatibleError) as refused:
            get(OLD_DRIVER, "mlx:cuda13")
        assert refused.value.message == "driver 550.54 is older than 580 that CUDA 13 needs"
        assert "use mlx-linux-x86_64-cuda12@" in refused.value.help

    def test_a_reason_that_two_releases_share_is_told_once(self, get):
        nvcc12 = OLD_DRIVER | {"TOOL_VERSIONS": "nvcc=12.4"}
        with pytest.raises(IncompatibleError) as refused:
            get(nvcc12, "llama.cpp:cuda13")
        assert refused.value.message.count("driver 550.54 is older than 580 that CUDA 13 needs") == 1
        assert "use llama.cpp-cuda-linux-x86_64-cuda12@" in refused.value.help

    def test_without_a_compiler_the_wheel_is_asked_for_and_taken(self, get):
        bare = LINUX | {"TOOLS": ""}
        with pytest.raises(UnpinnedError, match=r"llama\.cpp-linux-x86_64-cpu@.* is built on this machine") as refused:
            get(bare, "llama.cpp")
        assert refused.value.help.count("llama.cpp-linux-x86_64-avx2-wheel@") == 1
        assert refused.value.help.count("--allow-unpinned") == 1

        assert get(bare, "llama.cpp", allow_unpinned=True).release.platform == "linux-x86_64-avx2-wheel"

    def test_with_a_compiler_the_wheel_is_taken_where_it_is_preferred(self, get):
        assert get(LINUX, "llama.cpp").release.platform == "linux-x86_64-cpu"
        kept = get(LINUX, "llama.cpp", prefer="wheel")
        assert kept.release.platform == "linux-x86_64-cpu"
        assert "needs --allow-unpinned, so llama.cpp-linux-x86_64-cpu@" in " ".join(kept.remarks)
        taken = get(LINUX, "llama.cpp", prefer="wheel", allow_unpinned=True)
        assert taken.release.platform == "linux-x86_64-avx2-wheel"


def test_a_tool_that_was_looked_for_in_vain_is_missing_and_not_unknown():
    survey = dataclasses.replace(a_survey(LINUX), tools=Fact({"c++": Path("/usr/bin/c++"), "zig": None}, "PATH"))
    assert judge(a_release(Requirements(tools=("zig",))), survey).status is C.MISSING_LIBRARIES
    assert judge(a_release(Requirements(tools=("zig|c++",))), survey).ok
