"""All GPUs of this machine, from the sources that the system has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.survey.facts import Fact, Gpu
from paceline.survey.pci import display_controllers

if TYPE_CHECKING:
    from paceline.survey.nvidia import NvidiaSurvey


def all_gpus(nvidia: NvidiaSurvey, root: Path = Path("/")) -> Fact[tuple[Gpu, ...]]:
    """What NVIDIA's driver lists, then the other cards on the bus.

    The driver's list is believed where it gives one. Without a driver the bus still tells that a card is there.
    """
    if sys.platform == "win32":
        return Fact(nvidia.gpus.value, f"{nvidia.gpus.source}; other makes are not looked for on Windows")
    bus = display_controllers(root)
    if nvidia.asked and nvidia.gpus.value is not None:
        others = tuple(gpu for gpu in bus if gpu.make != "nvidia")
        return Fact(nvidia.gpus.value + others, _sources(nvidia, others))
    if nvidia.gpus.value is None and not any(gpu.make == "nvidia" for gpu in bus):
        return Fact(None, nvidia.gpus.source)
    return Fact(bus, _sources(nvidia, bus))


def _sources(nvidia: NvidiaSurvey, bus: tuple[Gpu, ...]) -> str:
    return nvidia.gpus.source + ("; /sys/bus/pci/devices" if bus else "; no graphics card in /sys/bus/pci/devices")
