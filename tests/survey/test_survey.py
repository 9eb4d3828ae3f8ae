"""The real probes, compared with other ways to read the same fact."""

import dataclasses
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from paceline.cli.output import plain
from paceline.survey import Fact, Survey, _guarded, describe, take_survey
from paceline.survey.facts import Libc

linux = pytest.mark.skipif(sys.platform != "linux", reason="compares with /proc")


@pytest.fixture
def survey(environ) -> Survey:
    return take_survey(environ)


def test_system(survey):
    assert survey.os.value == {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}[platform.system()]
    assert survey.python_version.value == ".".join(map(str, sys.version_info[:3]))
    assert survey.os_version.value


@linux
def test_kernel_and_architecture(survey):
    assert survey.os_version.value == Path("/proc/sys/kernel/osrelease").read_text().strip()
    machine = subprocess.run(["uname", "-m"], text=True, capture_output=True, check=True).stdout.strip()
    assert survey.arch.value == {"aarch64": "arm64"}.get(machine, machine)


@linux
def test_libc_is_what_ldd_says(survey):
    words = subprocess.run(["ldd", "--version"], text=True, capture_output=True, check=False)
    said = words.stdout + words.stderr
    if "musl" in said:
        assert survey.libc.value == Libc("musl", re.search(r"Version (\d+\.\d+)", said).group(1))
    else:
        assert survey.libc.value == Libc("glibc", said.splitlines()[0].split()[-1])
        assert str(survey.libc.value) == os.confstr("CS_GNU_LIBC_VERSION")


@linux
def test_cpu_is_what_lscpu_says(survey):
    if shutil.which("lscpu") is None:
        pytest.skip("no lscpu here")
    argv = ["lscpu", "--json"]
    answer = subprocess.run(argv, text=True, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"}).stdout
    facts = {row["field"].rstrip(":"): row["data"] for row in _rows(json.loads(answer)["lscpu"])}
    assert survey.cpu_features.value == frozenset(facts["Flags"].split())
    if platform.machine() == "x86_64":
        assert survey.cpu_name.value == facts["Model name"]
    if "Core(s) per socket" in facts:
        assert survey.physical_cores.value == int(facts["Core(s) per socket"]) * int(facts["Socket(s)"])


@linux
def test_memory_is_what_the_kernel_says_or_less(survey):
    in_machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kib = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text()).group(1))
    assert in_machine == kib * 1024
    if survey.memory_total.source == "psutil":
        assert survey.memory_total.value == in_machine
    else:
        assert 0 < survey.memory_total.value < in_machine
    assert 0 < survey.memory_available.value <= survey.memory_total.value
    assert survey.memory_total.value <= psutil.virtual_memory().total


def test_tools_are_executables_that_run(survey):
    cmake = shutil.which("cmake")
    assert survey.tools.value["cmake"] == (Path(cmake) if cmake else None)
    for path in filter(None, survey.tools.value.values()):
        assert path.is_absolute()
        assert path.exists()


def test_a_survey_is_plain_json(survey):
    text = json.dumps(plain(survey))
    again = json.loads(text)
    assert set(again) == {field.name for field in dataclasses.fields(Survey)}
    assert all(set(fact) == {"value", "source"} for fact in again.values())


def test_every_fact_names_its_source(survey):
    for field in dataclasses.fields(survey):
        fact = getattr(survey, field.name)
        assert isinstance(fact, Fact)
        assert fact.source, field.name


def test_describe_has_one_row_per_fact(survey):
    rows = describe(survey)
    assert len(rows) == len(dataclasses.fields(survey))
    assert all(fact and value and source for fact, value, source in rows)


def test_describe_says_it_for_people(environ):
    given = {
        "LIBC": "glibc 2.36",
        "CPU_FEATURES": "avx,avx2,mmx",
        "MEMORY_TOTAL": "16GiB",
        "GPUS": "nvidia:RTX 4090:8.9:24GiB;amd:Radeon;apple:Apple M2::16GiB",
        "NVIDIA_DRIVER": "unknown",
        "TOOLS": "c++,cmake",
    }
    rows = describe(take_survey({**environ, **{f"PACELINE_OVERRIDE_{name}": text for name, text in given.items()}}))
    said = {fact: value for fact, value, _ in rows}
    assert said["C library"] == "glibc 2.36"
    assert said["CPU features"] == "avx, avx2 (3 in all)"
    assert said["memory"] == "16.0 GiB"
    assert said["GPUs"] == (
        "RTX 4090 (24.0 GiB, compute capability 8.9); Radeon; Apple M2 (16.0 GiB shared with the processor)"
    )
    assert said["NVIDIA driver"] == "not found"
    assert said["build tools"] == "c++, cmake"


def test_describe_tells_a_reason_once(survey):
    reason = Fact(None, "no sign of a driver")
    gpus = Fact((), "no sign of a driver; no graphics card")
    rows = describe(dataclasses.replace(survey, gpus=gpus, nvidia_driver=reason, cuda_version=reason))
    assert [source for fact, _, source in rows if fact in ("GPUs", "NVIDIA driver", "CUDA of the driver")] == [
        gpus.source, "as above", "as above",
    ]  # fmt: skip


def test_a_probe_that_breaks_makes_its_fact_unknown():
    fact = _guarded(lambda: Fact(1 // 0, "arithmetic"))
    assert fact == Fact(None, "the probe failed: ZeroDivisionError: integer division or modulo by zero")


def _rows(rows):
    for row in rows:
        yield row
        yield from _rows(row.get("children", []))
