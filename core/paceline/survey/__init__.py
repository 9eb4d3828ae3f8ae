"""The facts about this machine that decide which runtimes it can run, each with its source, each overridable.

No fact needs an engine, and nothing of a GPU's driver is ever loaded into this process.
"""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from paceline import paths
from paceline.survey import apple, cpu, gpus, memory, system, tools
from paceline.survey.answers import Answers
from paceline.survey.describe import describe
from paceline.survey.facts import Fact, Gpu, Libc, Survey
from paceline.survey.nvidia import NvidiaSurvey, survey_nvidia
from paceline.survey.overrides import read_overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Fact", "Gpu", "Libc", "Survey", "describe", "known_survey", "take_survey"]

PROBE_TIMEOUT_S = 15.0


def known_survey(*, refresh: bool = False) -> Survey:
    """The survey of this machine, as commands take it: what programs answered before is remembered in the cache."""
    return take_survey(cache=paths.cache(), refresh=refresh)


def take_survey(
    environ: Mapping[str, str] | None = None,
    *,
    probe_timeout_s: float = PROBE_TIMEOUT_S,
    cache: Path | None = None,
    refresh: bool = False,
) -> Survey:
    """Find every fact that `environ` (default: this process's environment) does not override.

    A few milliseconds, unless there is a sign of an NVIDIA driver or of its compiler: then up to four processes are
    asked, each for at most `probe_timeout_s` seconds. Their answers are remembered below `cache` until the driver, the
    cards, the program or the boot is another one; `refresh` asks them anew. A probe that fails makes its fact unknown;
    only a malformed override raises (UsageError).
    """
    environ = os.environ if environ is None else environ
    facts = read_overrides(environ)
    probes = _Probes(environ, probe_timeout_s, Answers(cache, refresh=refresh), facts.get("tools"))
    for field in fields(Survey):
        if field.name not in facts:
            facts[field.name] = _guarded(getattr(probes, field.name))
    return Survey(**facts)


def _guarded(find: Callable[[], Fact[Any]]) -> Fact[Any]:
    try:
        return find()
    except Exception as error:
        return Fact(None, f"the probe failed: {type(error).__name__}: {error}")


class _Probes:
    """One method per fact; what several facts share is asked once."""

    def __init__(
        self, environ: Mapping[str, str], timeout_s: float, answers: Answers, given_tools: Fact[Any] | None
    ) -> None:
        self._environ = environ
        self._timeout_s = timeout_s
        self._answers = answers
        self._given_tools = given_tools

    os = staticmethod(system.os_name)
    os_version = staticmethod(system.os_version)
    arch = staticmethod(system.arch)
    libc = staticmethod(system.libc)
    cpu_name = staticmethod(cpu.cpu_name)
    cpu_features = staticmethod(cpu.cpu_features)
    physical_cores = staticmethod(cpu.physical_cores)
    memory_total = staticmethod(memory.memory_total)
    memory_available = staticmethod(memory.memory_available)
    python_version = staticmethod(system.python_version)

    def gpus(self) -> Fact[tuple[Gpu, ...]]:
        if sys.platform == "darwin":
            return apple.apple_gpu(system.arch(), cpu.cpu_name, memory.memory_total)
        return gpus.all_gpus(self._nvidia)

    def nvidia_driver(self) -> Fact[str]:
        return self._nvidia.driver

    def cuda_version(self) -> Fact[str]:
        return self._nvidia.cuda_version

    def tools(self) -> Fact[Any]:
        return self._tools

    def tool_versions(self) -> Fact[Any]:
        return tools.tool_versions(self._tools.value or {}, self._answers, self._timeout_s)

    @cached_property
    def _tools(self) -> Fact[Any]:
        return self._given_tools or tools.tools(self._environ)

    @cached_property
    def _nvidia(self) -> NvidiaSurvey:
        return survey_nvidia(self._environ, self._timeout_s, answers=self._answers)
