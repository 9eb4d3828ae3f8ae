"""NVIDIA GPUs, their driver and the CUDA version it supports. Always asked in another process, with a time limit."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paceline
from paceline.survey import probe
from paceline.survey.answers import Answers, stamp
from paceline.survey.facts import Fact, Gpu
from paceline.survey.pci import display_controllers
from paceline.untrusted_json import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

_WSL = "usr/lib/wsl/lib"
_SIGNS = ("proc/driver/nvidia", "dev/nvidiactl", "dev/nvhost-gpu", f"{_WSL}/libcuda.so.1")
_MODULE = "proc/driver/nvidia/version"
_NUMBER = re.compile(r"\d+(\.\d+)*")
# The name comes last: it alone may hold a comma. Drivers before 510 do not know compute_cap.
_FIELDS: tuple[str, ...] = ("driver_version", "compute_cap", "memory.total", "name")
_OLD_FIELDS = tuple(field for field in _FIELDS if field != "compute_cap")
_NONE_FOUND = "No devices were found"


@dataclass(frozen=True)
class NvidiaSurvey:
    """The three facts that NVIDIA's driver knows."""

    gpus: Fact[tuple[Gpu, ...]]
    driver: Fact[str]
    cuda_version: Fact[str]
    asked: bool
    """False: there was no sign of a driver, so nobody was asked."""


def survey_nvidia(
    environ: Mapping[str, str], timeout_s: float, root: Path = Path("/"), answers: Answers | None = None
) -> NvidiaSurvey:
    """Ask nvidia-smi, and the driver's libraries for what it does not say; nothing is started without a sign of a GPU.

    Each of the at most three processes may take `timeout_s` seconds. `CUDA_VISIBLE_DEVICES` is kept from them: it
    says which GPUs to use, not which are there. What `answers` remembers of the same driver, cards and boot is taken
    from there; only what was answered in full is remembered.
    """
    smi = shutil.which("nvidia-smi", path=environ.get("PATH", "")) or shutil.which("nvidia-smi", path=str(root / _WSL))
    if smi is None and not any((root / sign).exists() for sign in _SIGNS):
        looked = "nvidia-smi on PATH" + "".join(f", /{sign}" for sign in _SIGNS if sys.platform != "win32")
        none = f"no sign of an NVIDIA driver ({looked})"
        return NvidiaSurvey(Fact((), none), Fact(None, none), Fact(None, none), asked=False)
    child = {k: v for k, v in environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    child |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "LC_ALL": "C"}
    asked: list[NvidiaSurvey] = []

    def ask() -> dict[str, Any] | None:
        said = _ask_smi(smi, child, timeout_s)
        library = _ask_library("version" if said.complete else "devices", child, timeout_s)
        asked.append(
            NvidiaSurvey(_gpus(said, library), _driver(said, library, root), _cuda_version(library), asked=True)
        )
        facts = asdict(asked[0])
        return facts if all(facts[name]["value"] is not None for name in _FACTS) else None

    known, since = (answers or Answers()).get("nvidia", _key(smi, environ, root), ask)
    return asked[0] if asked else _remembered(known, since) or survey_nvidia(environ, timeout_s, root)


@dataclass(frozen=True)
class _Said:
    """What one source said of the GPUs; None for what it did not."""

    source: str
    gpus: tuple[Gpu, ...] | None = None
    driver: str | None = None
    cuda: int | None = None
    problem: str | None = None

    @property
    def complete(self) -> bool:
        return self.gpus is not None and all(gpu.compute_capability for gpu in self.gpus)

    @property
    def words(self) -> str:
        return f"{self.source}: {self.problem}" if self.problem else self.source


_FACTS = ("gpus", "driver", "cuda_version")


def _key(smi: str | None, environ: Mapping[str, str], root: Path) -> str:
    """What the answers depend on: this Paceline, the boot, the driver's module and programs, the cards."""
    told = [
        paceline.__version__,
        _read(root / "proc/sys/kernel/random/boot_id"),
        _read(root / _MODULE),
        stamp(smi),
        *sorted(p.name for p in (root / "dev").glob("nvidia*")),
        *(gpu.name for gpu in display_controllers(root)),
        environ.get("LD_LIBRARY_PATH", ""),
    ]
    return "\n".join(told)


def _remembered(known: Any, since: str | None) -> NvidiaSurvey | None:
    """What was remembered, each source saying since when; None for what no survey wrote."""
    try:
        facts = {name: (known[name]["value"], f"{known[name]['source']}, asked {since}") for name in _FACTS}
        gpus, driver, cuda = (facts[name] for name in _FACTS)
        cards = tuple(Gpu(**gpu) for gpu in gpus[0])
        return NvidiaSurvey(Fact(cards, gpus[1]), Fact(str(driver[0]), driver[1]), Fact(str(cuda[0]), cuda[1]), True)
    except (TypeError, KeyError):
        return None


def parse_smi(text: str, fields: tuple[str, ...]) -> tuple[tuple[Gpu, ...], str | None]:
    """GPUs and driver version from `nvidia-smi --query-gpu=<fields> --format=csv,noheader,nounits`.

    A value in brackets (`[N/A]`, `[Not Supported]`) is one the driver does not know. Raises ValueError for
    anything else that is no such table.
    """
    gpus = []
    drivers = []
    for line in text.splitlines():
        if not line.strip():
            continue
        values = [value.strip() for value in line.split(",", len(fields) - 1)]
        if len(values) != len(fields):
            raise ValueError(f"wrote what is no table of GPUs: {line.strip()[:80]!r}")
        row = dict(zip(fields, values, strict=True))
        mebibytes = _known(row["memory.total"])
        gpus.append(
            Gpu(
                make="nvidia",
                name=row["name"],
                memory_bytes=None if mebibytes is None else int(float(mebibytes) * (1 << 20)),
                compute_capability=_known(row.get("compute_cap", "[N/A]")),
            )
        )
        drivers.append(_known(row["driver_version"]))
    if not gpus:
        raise ValueError("wrote nothing")
    return tuple(gpus), drivers[0]


def parse_library(text: str) -> tuple[tuple[Gpu, ...] | None, str | None, int | None, str | None]:
    """GPUs, driver, CUDA version and error from what `cuda_probe.py` printed. Raises ValueError for anything else."""
    try:
        answer = parse(text)
        devices = answer.get("devices")
        gpus = devices and tuple(
            Gpu("nvidia", str(d["name"]), _integer(d.get("memory")), _text(d.get("capability"))) for d in devices
        )
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"wrote what is no answer: {text.strip()[:80]!r}") from error
    gpus = () if devices == [] else gpus
    return gpus, _text(answer.get("driver")), _integer(answer.get("cuda")), _text(answer.get("error"))


def _ask_smi(smi: str | None, environ: Mapping[str, str], timeout_s: float) -> _Said:
    if smi is None:
        return _Said("nvidia-smi", problem="not on PATH")
    output, fields = _query(smi, _FIELDS, environ, timeout_s), _FIELDS
    if output.failure is not None and "compute_cap" in output.text + output.failure:
        output, fields = _query(smi, _OLD_FIELDS, environ, timeout_s), _OLD_FIELDS
    if _NONE_FOUND in output.text:
        return _Said(smi, gpus=())
    if output.failure is not None:
        return _Said(smi, problem=output.failure)
    try:
        gpus, driver = parse_smi(output.text, fields)
    except ValueError as error:
        return _Said(smi, problem=str(error))
    return _Said(smi, gpus=gpus, driver=driver)


def _query(smi: str, fields: tuple[str, ...], environ: Mapping[str, str], timeout_s: float) -> probe.Output:
    return probe.run([smi, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"], timeout_s, environ)


def _ask_library(what: str, environ: Mapping[str, str], timeout_s: float) -> _Said:
    program = Path(__file__).with_name("cuda_probe.py")
    output = probe.run([sys.executable, "-I", "-B", str(program), what], timeout_s, environ)
    if output.failure is not None:
        return _Said("libcuda", problem=output.failure)
    try:
        gpus, driver, cuda, error = parse_library(output.text)
    except ValueError as problem:
        return _Said("libcuda", problem=str(problem))
    return _Said("libcuda", gpus, driver, cuda, error)


def _gpus(smi: _Said, library: _Said) -> Fact[tuple[Gpu, ...]]:
    if smi.gpus is None:
        return Fact(library.gpus, library.source if library.gpus is not None else f"{smi.words}; {library.words}")
    if smi.complete or not library.gpus or len(library.gpus) != len(smi.gpus):
        return Fact(smi.gpus, smi.source)
    # Both list by PCI bus, so the rows belong together.
    filled = tuple(
        replace(gpu, compute_capability=gpu.compute_capability or other.compute_capability)
        for gpu, other in zip(smi.gpus, library.gpus, strict=True)
    )
    return Fact(filled, f"{smi.source}, {library.source}")


def _driver(smi: _Said, library: _Said, root: Path) -> Fact[str]:
    for said in (smi, library):
        if said.driver:
            return Fact(said.driver, said.source if said is smi else "libnvidia-ml")
    version = _kernel_module(root)
    return Fact(version, f"/{_MODULE}" if version else f"{smi.words}; no /{_MODULE}")


def _kernel_module(root: Path) -> str | None:
    """`NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023`."""
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)*)\s", _read(root / _MODULE).partition("\n")[0])
    return found.group(1) if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


def _cuda_version(library: _Said) -> Fact[str]:
    if library.cuda is None:
        return Fact(None, library.words)
    return Fact(f"{library.cuda // 1000}.{library.cuda % 1000 // 10}", "cuDriverGetVersion")


def _known(value: str) -> str | None:
    """A number, or None for what the driver does not know. Raises ValueError for any other text."""
    if value.startswith("["):
        return None
    if not _NUMBER.fullmatch(value):
        raise ValueError(f"wrote {value[:80]!r} where a number belongs")
    return value


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
