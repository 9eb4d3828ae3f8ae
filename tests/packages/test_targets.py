"""Which wheels fit machines that are not this one."""

from __future__ import annotations

import pytest
from packaging.tags import parse_tag, sys_tags

from paceline.packages.pages import Listed, best
from paceline.packages.targets import here, oldest
from paceline.types import Package, Requirements

LINUX = Requirements(os="linux", arch="x86_64", min_glibc="2.31")
MAC = Requirements(os="macos", arch="arm64", min_os_version="14.0")


@pytest.mark.parametrize(
    ("requires", "fitting", "others"),
    [
        (
            LINUX,
            "manylinux_2_31_x86_64 manylinux_2_17_x86_64.manylinux2014_x86_64 manylinux1_x86_64 linux_x86_64",
            "manylinux_2_35_x86_64 manylinux_2_17_aarch64 musllinux_1_2_x86_64 win_amd64 macosx_14_0_arm64",
        ),
        (Requirements(os="linux", arch="arm64"), "manylinux_2_28_aarch64 linux_aarch64", "manylinux_2_28_x86_64"),
        (MAC, "macosx_14_0_arm64 macosx_11_0_universal2", "macosx_15_0_arm64 macosx_11_0_x86_64 linux_x86_64"),
        (Requirements(os="windows", arch="x86_64"), "win_amd64", "win32 win_arm64 linux_x86_64"),
        (Requirements(os="windows", arch="arm64"), "win_arm64", "win_amd64"),
    ],
)
def test_platforms(requires, fitting, others):
    tags = set(oldest(requires, "3.12").tags)
    for platform in fitting.split():
        for abi in ("cp312-cp312", "cp310-abi3", "py3-none"):
            assert parse_tag(f"{abi}-{platform}") & tags, (abi, platform)
    for platform in others.split():
        assert not parse_tag(f"py3-none-{platform}") & tags, platform


@pytest.mark.parametrize("abi", ["cp311-cp311", "cp313-cp313", "cp312-cp312t", "cp313-abi3", "py2-none", "pp312-none"])
def test_other_pythons(abi):
    assert not parse_tag(f"{abi}-win_amd64") & set(oldest(Requirements(os="windows"), "3.12").tags)


def test_what_fits_anywhere_fits_last():
    names = [f"alpha-1.0-{tag}.whl" for tag in ("py3-none-any", "cp312-cp312-win_amd64", "cp310-abi3-win_amd64")]
    listed = [Listed(name, f"https://example.org/{name}") for name in names]
    windows = oldest(Requirements(os="windows"), "3.12")
    found = []
    while listed:
        found.append(best(listed, Package("alpha", "1.0"), windows))
        listed.remove(found[-1])
    assert [file.name for file in found] == [names[1], names[2], names[0]]


def test_sentences_name_them():
    assert oldest(LINUX, "3.12").name == "Python 3.12 on linux x86_64"
    assert oldest(Requirements(), "3.12").name == "Python 3.12 on this machine"
    assert here().tags == tuple(sys_tags())
