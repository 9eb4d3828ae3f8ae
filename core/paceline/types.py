"""The values that cross the boundary between the host and its plugins.

All are frozen: a plugin returns them, the host validates, lists and stores them. A fact nobody could find
out is `None`, never an empty string or a made-up number. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from paceline.runtime import Runtime as Runtime


class Compatibility(StrEnum):
    """What a check of a release against this machine can conclude. The spelling is LM Studio's."""

    COMPATIBLE = "compatible"
    INCOMPATIBLE_APP_VERSION = "incompatibleAppVersion"
    INCOMPATIBLE_BACKEND_VERSION = "incompatibleBackendVersion"
    INVALID_CPU_ARCHITECTURE = "invalidCpuArchitecture"
    INVALID_CPU_INSTRUCTION_SET_EXTENSIONS = "invalidCpuInstructionSetExtensions"
    CPU_SURVEY_UNSUCCESSFUL = "cpuSurveyUnsuccessful"
    GPU_SURVEY_UNSUCCESSFUL = "gpuSurveyUnsuccessful"
    GPU_REQUIRED_BUT_NONE_FOUND = "gpuRequiredButNoneFound"
    GPU_TARGETS_REQUIRED_BUT_NONE_SPECIFIED = "gpuTargetsRequiredButNoneSpecified"
    GPU_DRIVER_UNSUPPORTED = "gpuDriverUnsupported"
    NO_SUPPORTED_GPUS = "noSupportedGpus"
    INCOMPATIBLE_PLATFORM = "incompatiblePlatform"
    LIBRARY_OUTDATED = "libraryOutdated"
    INVALID_LIBRARY_VERSION_FORMAT = "invalidLibraryVersionFormat"
    MISSING_LIBRARIES = "missingLibraries"
    ERROR_SURVEYING_HARDWARE = "errorSurveyingHardware"
    ERROR_CHECKING_COMPATIBILITY = "errorCheckingCompatibility"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """The answer to "can this machine run that release?"."""

    status: Compatibility
    message: str
    help: str | None = None

    @property
    def ok(self) -> bool:
        return self.status is Compatibility.COMPATIBLE


class PairStatus(StrEnum):
    """What a check of a (main, draft) pair can conclude."""

    COMPATIBLE = "compatible"
    SAME_MODEL = "sameModel"
    DIFFERENT_FORMAT = "differentFormat"
    NOT_A_LANGUAGE_MODEL = "notALanguageModel"
    DRAFT_NOT_SMALLER = "draftNotSmaller"
    SPECIAL_DRAFT = "specialDraft"
    CANNOT_ROLL_BACK = "cannotRollBack"
    VOCABULARY_TYPE_DIFFERS = "vocabularyTypeDiffers"
    BOS_DIFFERS = "bosDiffers"
    EOS_DIFFERS = "eosDiffers"
    VOCABULARY_SIZE_DIFFERS = "vocabularySizeDiffers"
    TOKEN_DIFFERS = "tokenDiffers"
    NO_VOCABULARY = "noVocabulary"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class PairVerdict:
    """The answer to "can this draft propose for that main model?".

    `warnings` do not forbid the pair (a different pre-tokenizer, a shorter context, ...).
    """

    status: PairStatus
    message: str
    help: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status is PairStatus.COMPATIBLE


@dataclass(frozen=True)
class GpuRequirement:
    """The GPU a release needs. Versions are dotted strings compared by meaning, bounds inclusive."""

    make: str
    """`nvidia` or `apple`."""
    min_driver: str | None = None
    min_compute_capability: str | None = None
    max_compute_capability: str | None = None


@dataclass(frozen=True)
class Requirements:
    """What a machine must have for a release. An empty field asks for nothing."""

    os: str | None = None
    """`linux`, `macos` or `windows`."""
    arch: str | None = None
    """`x86_64` or `arm64`."""
    min_os_version: str | None = None
    min_glibc: str | None = None
    """Linux only; a release that names it does not run on musl."""
    cpu_features: tuple[str, ...] = ()
    """Names as in /proc/cpuinfo: `avx2`, `fma`, `f16c`, `bmi2`, ..."""
    gpu: GpuRequirement | None = None
    python: str | None = None
    """A PEP 440 specifier for the interpreter the runtime is built on."""
    tools: tuple[str, ...] = ()
    """Commands a source build needs: `c++`, `cmake`, `nvcc>=13,<14`. Any one of a `|`-separated group will do."""
    min_host: str | None = None
    """Oldest version of Paceline that can drive it."""


@dataclass(frozen=True)
class Package:
    """One pinned package of a recipe's closure; no hashes means the index publishes none."""

    name: str
    version: str
    sha256: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    """Bytes of each file in `sha256`, in that order; empty when they are not all known."""
    index: str | None = None
    """Index page to take it from; None is the index the user has configured."""
    source: bool = False
    """True: taken as a source distribution and built here."""
    marker: str | None = None
    """PEP 508 environment marker."""
    file: str | None = None
    """A wheel of this machine, by its name in the runtime's folder `packages`; no registry has such packages."""


@dataclass(frozen=True)
class Recipe:
    """How a runtime's environment is made: exactly these packages, built with exactly these settings."""

    packages: tuple[Package, ...] = ()
    build_packages: tuple[Package, ...] = ()
    """The closure of the build requirements, pinned alike."""
    config_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Package name -> PEP 517 config settings, e.g. `{"cmake.define.GGML_CUDA": "ON"}`."""
    prune: tuple[str, ...] = ()
    """Paths below site-packages that the packages leave behind and no engine needs."""
    expected_build_s: float | None = None
    """Measured once, on the machine named in the registry's notes; for the sentence before a build."""
    roots: tuple[str, ...] = ()
    """The requirements (PEP 508) whose closure `packages` is: what newer releases are resolved from."""
    build_roots: tuple[str, ...] = ()
    unhashed: Mapping[str, str] = field(default_factory=dict)
    """Package name -> the index page it is taken from, where that page publishes no hashes."""
    installed_bytes: int | None = None
    """Size of the installed runtime, measured once; for the question whether the disk has room, else estimated."""

    @property
    def unpinned(self) -> tuple[Package, ...]:
        """The packages whose index publishes no hash."""
        return tuple(p for p in self.packages if not p.sha256)


@dataclass(frozen=True)
class Upstream:
    """Where an engine's new versions appear: a package in the index the user has configured."""

    package: str
    versions: str
    """A PEP 440 specifier of the versions that the plugin's worker can drive."""


@dataclass(frozen=True)
class Release:
    """One version of an engine for one platform: what could be installed."""

    engine: str
    version: str
    platform: str
    """`linux-x86_64-cpu`, `mac-arm64-metal`, `linux-x86_64-nvidia-cuda12`, ..."""
    formats: tuple[str, ...]
    requires: Requirements
    recipe: Recipe
    channel: str = "stable"
    features: tuple[str, ...] = ()
    rank: int = 0
    """Among releases this machine can run, the highest rank is the best."""
    notes: str = ""
    published: str | None = None
    """When the engine's package was uploaded, or the release first seen where nobody says so: an ISO 8601 time with its
    offset. None in the catalogue for what came with Paceline or a plugin."""
    source: str = field(default="", compare=False)
    """Where the catalogue has it from, in words; nothing of what it is, and never written into a registry."""

    @property
    def name(self) -> str:
        """`llama.cpp-linux-x86_64-cpu`."""
        return f"{self.engine}-{self.platform}"

    @property
    def id(self) -> str:
        """`llama.cpp-linux-x86_64-cpu@0.3.36`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class WorkerSpec:
    """How a worker is started. A launcher turns it into a running process, here or elsewhere."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to a minimal environment; the host's own is not inherited."""
    cwd: Path | None = None


class ModelKind(StrEnum):
    """LM Studio's `type` of a model."""

    LLM = "llm"
    VLM = "vlm"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class ModelFacts:
    """What the files of one model say, read without loading it."""

    kind: ModelKind
    size_bytes: int
    """All shards together."""
    name: str | None = None
    arch: str | None = None
    quantization: str | None = None
    parameters: int | None = None
    max_context_length: int | None = None
    """Tokens."""
    chat_template: str | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    capabilities: tuple[str, ...] = ()
    """LM Studio's names: `tool_use`."""
    pairing: Mapping[str, object] = field(default_factory=dict)
    """What the pair rules of this format need, as JSON values. Models with equal `pairing["key"]` are
    interchangeable to the rules, so verdicts are remembered by key."""


@dataclass(frozen=True)
class Model:
    """One model of the library."""

    id: str
    """Model key, unique in the library: `paceline-coder-7m`, or `paceline-coder-7m@f16` where quantizations differ."""
    format: str
    """`gguf`, `mlx`, or a format that a plugin brings."""
    path: Path
    """The file (first shard), or the folder."""
    publisher: str
    facts: ModelFacts
