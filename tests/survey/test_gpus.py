import sys
from pathlib import Path

import pytest

from paceline.survey.apple import apple_gpu
from paceline.survey.facts import Fact, Gpu
from paceline.survey.gpus import all_gpus
from paceline.survey.nvidia import NvidiaSurvey
from paceline.survey.pci import display_controllers

RTX = Gpu("nvidia", "RTX 4090", 24 << 30, "8.9")
UNKNOWN = Fact(None, "none")


@pytest.fixture
def bus(tmp_path):
    def make(*devices: tuple[str, str, str]) -> Path:
        for number, (kind, vendor, device) in enumerate(devices):
            folder = tmp_path / f"sys/bus/pci/devices/0000:00:{number:02x}.0"
            folder.mkdir(parents=True)
            for name, text in (("class", kind), ("vendor", vendor), ("device", device)):
                (folder / name).write_text(f"{text}\n")
        return tmp_path

    return make


def test_only_graphics_cards_of_known_makes_count(bus):
    root = bus(
        ("0x030000", "0x10de", "0x2684"),
        ("0x040300", "0x10de", "0x22ba"),
        ("0x030000", "0x1a03", "0x2000"),
        ("0x038000", "0x1002", "0x73bf"),
        ("0x030200", "0x8086", "0x56c0"),
    )
    assert display_controllers(root) == (
        Gpu("nvidia", "NVIDIA graphics (PCI 10de:2684)"),
        Gpu("amd", "AMD graphics (PCI 1002:73bf)"),
        Gpu("intel", "Intel graphics (PCI 8086:56c0)"),
    )


def test_no_bus_no_cards(tmp_path):
    assert display_controllers(tmp_path) == ()


linux = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no /sys")


@linux
def test_the_drivers_list_is_believed_and_others_added(bus):
    root = bus(("0x030000", "0x10de", "0x2684"), ("0x030000", "0x1002", "0x73bf"))
    nvidia = NvidiaSurvey(Fact((RTX,), "nvidia-smi"), UNKNOWN, UNKNOWN, asked=True)
    found = all_gpus(nvidia, root)
    assert [gpu.name for gpu in found.value] == ["RTX 4090", "AMD graphics (PCI 1002:73bf)"]
    assert found.source == "nvidia-smi; /sys/bus/pci/devices"


@linux
@pytest.mark.parametrize(("listed", "asked"), [((), False), (None, True)])
def test_a_card_without_a_working_driver_is_seen_on_the_bus(bus, listed, asked):
    root = bus(("0x030000", "0x10de", "0x2684"))
    found = all_gpus(NvidiaSurvey(Fact(listed, "tried"), UNKNOWN, UNKNOWN, asked=asked), root)
    assert found.value == (Gpu("nvidia", "NVIDIA graphics (PCI 10de:2684)"),)


@linux
def test_a_driver_that_does_not_answer_leaves_the_gpus_unknown(bus):
    nvidia = NvidiaSurvey(Fact(None, "nvidia-smi: failed"), UNKNOWN, UNKNOWN, asked=True)
    assert all_gpus(nvidia, bus()) == Fact(None, "nvidia-smi: failed")


@linux
def test_nothing_asked_and_nothing_on_the_bus_is_no_gpu(bus):
    nvidia = NvidiaSurvey(Fact((), "no sign"), UNKNOWN, UNKNOWN, asked=False)
    assert all_gpus(nvidia, bus()).value == ()


def test_apple_silicon_has_one_in_the_machines_memory():
    found = apple_gpu(Fact("arm64", ""), lambda: Fact("Apple M2", ""), lambda: Fact(16 << 30, ""))
    assert found.value == (Gpu("apple", "Apple M2", 16 << 30, unified=True),)


def test_gpus_of_intel_macs_are_unknown():
    assert apple_gpu(Fact("x86_64", ""), lambda: UNKNOWN, lambda: UNKNOWN).value is None
