import dataclasses
from pathlib import Path

import pytest

from paceline.errors import UsageError
from paceline.survey import Survey, overrides, take_survey
from paceline.survey.facts import Gpu, Libc
from paceline.survey.overrides import PREFIX, read_overrides

RTX_4090 = Gpu("nvidia", "NVIDIA GeForce RTX 4090", 24 << 30, "8.9")
GOOD = [
    ("os", "macos", "macos"),
    ("os", "Linux", "linux"),
    ("os_version", "14.5", "14.5"),
    ("os_version", "6.1.0-13-amd64", "6.1.0-13-amd64"),
    ("arch", "arm64", "arm64"),
    ("arch", "AMD64", "x86_64"),
    ("arch", "riscv64", "riscv64"),
    ("libc", "glibc 2.17", Libc("glibc", "2.17")),
    ("libc", "musl 1.2", Libc("musl", "1.2")),
    ("libc", "glibc two", Libc("glibc", "two")),
    ("cpu_name", "Apple M2 Pro", "Apple M2 Pro"),
    ("cpu_features", "avx, AVX2,fma", frozenset({"avx", "avx2", "fma"})),
    ("physical_cores", "8", 8),
    ("memory_total", "16GiB", 16 << 30),
    ("memory_total", "16 GB", 16 * 10**9),
    ("memory_total", "1024", 1024),
    ("memory_available", "3.5GiB", 7 << 29),
    ("gpus", "nvidia:NVIDIA GeForce RTX 4090:8.9:24GiB", (RTX_4090,)),
    (
        "gpus",
        "nvidia:NVIDIA GeForce RTX 4090:8.9:24GiB; amd:Radeon RX 7900 XTX::24GiB; nvidia:Card",
        (RTX_4090, Gpu("amd", "Radeon RX 7900 XTX", 24 << 30), Gpu("nvidia", "Card")),
    ),
    ("gpus", "apple:Apple M2::16GiB", (Gpu("apple", "Apple M2", 16 << 30, unified=True),)),
    ("nvidia_driver", "550.54", "550.54"),
    ("cuda_version", "12.4", "12.4"),
    ("python_version", "3.12.4", "3.12.4"),
    ("tool_versions", "nvcc=12.4, cmake=3.30.1", {"nvcc": "12.4", "cmake": "3.30.1"}),
]
BAD = [
    ("os", "plan9"),
    ("os_version", "Sonoma"),
    ("arch", "x86 64"),
    ("libc", "2.17"),
    ("libc", "bionic 1"),
    ("libc", "glibc 2 17"),
    ("cpu_features", "avx,,avx2"),
    ("cpu_features", "avx avx2"),
    ("physical_cores", "0"),
    ("physical_cores", "many"),
    ("memory_total", "16 gigabytes"),
    ("memory_total", "-5"),
    ("memory_total", "iB"),
    ("memory_available", "1e9"),
    ("gpus", "NVIDIA GeForce RTX 4090"),
    ("gpus", "voodoo:Voodoo 2"),
    ("gpus", "nvidia::8.9:24GiB"),
    ("gpus", "nvidia:Card:new"),
    ("gpus", "nvidia:Card:8.9:24GiB:extra"),
    ("gpus", "nvidia:Card:8.9;"),
    ("nvidia_driver", "550.54-beta"),
    ("cuda_version", "v12"),
    ("python_version", "three"),
    ("tools", "c++,,cmake"),
    ("tools", "c++="),
    ("tool_versions", "nvcc"),
    ("tool_versions", "nvcc=new"),
]
ABSENT = {"cpu_features": frozenset(), "gpus": (), "tool_versions": {}}
FACTS = [field.name for field in dataclasses.fields(Survey)]


@pytest.mark.parametrize(("fact", "text", "value"), GOOD)
def test_a_well_formed_override_is_the_fact(fact, text, value):
    found = read_overrides({PREFIX + fact.upper(): text})
    assert list(found) == [fact]
    assert found[fact].value == value
    assert found[fact].source == PREFIX + fact.upper()


@pytest.mark.parametrize(("fact", "text"), BAD)
def test_a_malformed_override_names_the_variable_and_the_syntax(fact, text):
    variable = PREFIX + fact.upper()
    with pytest.raises(UsageError) as caught:
        read_overrides({variable: text})
    assert caught.value.message.startswith(f"{variable}={text!r}: ")
    assert caught.value.help.startswith(f"{variable} takes ")


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_can_be_absent_unknown_and_given(fact, environ):
    variable = PREFIX + fact.upper()
    absent = read_overrides({variable: " "})[fact]
    assert absent.source == f"{variable} (absent)"
    if fact == "tools":
        assert set(absent.value.values()) == {None}
    else:
        assert absent.value == ABSENT.get(fact)
    unknown = read_overrides({variable: "Unknown"})[fact]
    assert (unknown.value, unknown.source) == (None, f"{variable} (unknown)")
    assert fact == "tools" or any(fact == name for name, _, _ in GOOD)
    assert f"    {fact.upper()} " in overrides.__doc__


def test_tools_are_those_named_and_no_others():
    found = read_overrides({PREFIX + "TOOLS": "c++=/opt/bin/g++, cmake, zig=/opt/zig"})["tools"].value
    assert found["c++"] == Path("/opt/bin/g++")
    assert found["cmake"] == Path("cmake")
    assert found["zig"] == Path("/opt/zig")
    assert found["nvcc"] is None


def test_a_name_that_is_no_fact_is_refused_with_a_guess():
    with pytest.raises(UsageError, match="PACELINE_OVERRIDE_GPU overrides no fact") as caught:
        read_overrides({"PACELINE_OVERRIDE_GPU": "nvidia:X"})
    assert "did you mean PACELINE_OVERRIDE_GPUS?" in caught.value.help


def test_take_survey_keeps_the_other_facts(environ):
    real = take_survey(environ)
    given = take_survey({**environ, PREFIX + "OS": "windows"})
    assert given.os.value == "windows"
    assert given.arch == real.arch
    assert given.cpu_features == real.cpu_features


def test_take_survey_reads_the_process_environment(monkeypatch):
    monkeypatch.setenv(PREFIX + "ARCH", "arm64")
    assert take_survey().arch.source == PREFIX + "ARCH"
    monkeypatch.setenv(PREFIX + "ARCH", "two words")
    with pytest.raises(UsageError):
        take_survey()
