"""The engines: which format they serve, how their worker is started, which pairs work."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from paceline import Engine, python_worker, worker_root
from paceline_llama_cpp.pairs import RULES, judge

if TYPE_CHECKING:
    from paceline import Model, PairVerdict, Runtime, WorkerSpec


class LlamaCpp(Engine):
    """llama.cpp on the CPU or through Metal, as the runtime was built."""

    name = "llama.cpp"
    formats = ("gguf",)
    pair_rules = RULES

    def worker(self, runtime: Runtime) -> WorkerSpec:
        spec = python_worker(runtime.python, "paceline_llama_cpp_worker", worker_root())
        env = {
            # ggml attaches a debugger to its own process for a backtrace when it aborts; a dying worker must just die.
            "GGML_NO_BACKTRACE": "1",
            # Threads that wait give their core away. Spinning, as OpenMP does by itself, lets a busy machine slow
            # generation down many times over: each of a hundred barriers per token waits for whom nobody lets run.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        return replace(spec, env={**spec.env, **env})

    def judge_pair(self, main: Model, draft: Model, rules: str) -> PairVerdict:
        return judge(main, draft, rules)


class LlamaCppCuda(LlamaCpp):
    """llama.cpp on NVIDIA GPUs; CUDA's libraries come as packages of the runtime."""

    name = "llama.cpp-cuda"

    def worker(self, runtime: Runtime) -> WorkerSpec:
        spec = super().worker(runtime)
        environment = runtime.python.parent.parent
        libraries = sorted(str(p) for p in environment.glob("lib/python*/site-packages/nvidia/*/lib"))
        return replace(spec, env={**spec.env, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}) if libraries else spec
