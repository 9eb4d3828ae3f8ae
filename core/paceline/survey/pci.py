"""Graphics cards that the PCI bus lists, whether or not a driver runs them (Linux)."""

from __future__ import annotations

from pathlib import Path

from paceline.survey.facts import Gpu

_MAKES = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
_NAMES = {"nvidia": "NVIDIA", "amd": "AMD", "intel": "Intel"}
_DISPLAY_CONTROLLER = "0x03"


def display_controllers(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """The GPUs of known makes on the bus; the bus tells neither memory nor capability."""
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        if not _read(folder / "class").startswith(_DISPLAY_CONTROLLER):
            continue
        vendor, device = _read(folder / "vendor"), _read(folder / "device")
        make = _MAKES.get(vendor)
        if make is not None:
            numbers = f"{vendor.removeprefix('0x')}:{device.removeprefix('0x')}"
            found.append(Gpu(make, f"{_NAMES[make]} graphics (PCI {numbers})"))
    return tuple(found)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
