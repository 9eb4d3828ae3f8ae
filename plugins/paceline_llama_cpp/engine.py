"""The engines: which format they serve, how their worker is started, which pairs work."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from paceline import Engine, ModelKind, Upstream, python_worker, worker_root
from paceline_llama_cpp.pairs import RULES, judge

if TYPE_CHECKING:
    from paceline import LoadConfig, MemoryEstimate, Model, PairVerdict, Runtime, WorkerSpec


class LlamaCpp(Engine):
    """llama.cpp on the CPU or through Metal, as the runtime was built."""

    name = "llama.cpp"
    formats = ("gguf",)
    pair_rules = RULES
    upstream = Upstream("llama-cpp-python", ">=0.3.36,<0.4")
    own_memory = False
    """Whether its GPUs have memory of their own; Metal's share the machine's."""

    def worker(self, runtime: Runtime) -> WorkerSpec:
        spec = python_worker(runtime.python, "paceline_llama_cpp_worker", worker_root())
        # ggml attaches a debugger to its own process for a backtrace when it aborts; a dying worker must just die.
        return replace(spec, env={**spec.env, "GGML_NO_BACKTRACE": "1", **_waiting(), **_huge_pages()})

    def estimate(
        self, model: Model, config: LoadConfig, *, runtime: Runtime, draft: bool = False
    ) -> MemoryEstimate | None:
        from paceline.formats.gguf import read_gguf
        from paceline.formats.gguf_format import GgufFormat
        from paceline_llama_cpp.memory import estimate

        parts = [read_gguf(path) for path in GgufFormat().files(model.path)]
        embedding = model.facts.kind is ModelKind.EMBEDDINGS
        cpu = runtime.platform.endswith("-cpu")
        return estimate(parts, config, draft=draft, embedding=embedding, cpu=cpu, gpu=self.own_memory)

    def judge_pair(self, main: Model, draft: Model, rules: str) -> PairVerdict:
        return judge(main, draft, rules)


class LlamaCppCuda(LlamaCpp):
    """llama.cpp on NVIDIA GPUs; CUDA's libraries come as packages of the runtime."""

    name = "llama.cpp-cuda"
    own_memory = True

    def worker(self, runtime: Runtime) -> WorkerSpec:
        spec = super().worker(runtime)
        environment = runtime.python.parent.parent
        libraries = sorted(str(p) for p in environment.glob("lib/python*/site-packages/nvidia/*/lib"))
        if not libraries:
            return spec
        if others := os.environ.get("LD_LIBRARY_PATH"):
            libraries.append(others)
        return replace(spec, env={**spec.env, "LD_LIBRARY_PATH": os.pathsep.join(libraries)})


def _waiting() -> dict[str, str]:
    """How threads wait at the hundred barriers of a token: for a tenth of a millisecond awake, then asleep.

    OpenMP by itself lets them spin for many milliseconds, on the core that the late one needs when another program has
    its own (docs/decisions/waiting-threads.md). What the environment says about it counts more.
    """
    said = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
    return said or {"GOMP_SPINCOUNT": "2000"}


def _huge_pages() -> dict[str, str]:
    """Repacked weights and caches in pages of 2 MiB, where Linux gives them to who asks.

    That is a tunable of the GNU C library from 2.35 on (docs/decisions/huge-pages.md); others ignore it. What the
    environment says about it counts more.
    """
    said = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc.hugetlb" in said:
        return {"GLIBC_TUNABLES": said} if said else {}
    return {"GLIBC_TUNABLES": ":".join(filter(None, (said, "glibc.malloc.hugetlb=1")))}
