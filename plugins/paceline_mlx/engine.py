"""The engine: which format it serves, how its worker is started, which pairs work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline import Engine, ModelKind, Upstream, python_worker, worker_root
from paceline_mlx.pairs import RULES, judge

if TYPE_CHECKING:
    from paceline import LoadConfig, MemoryEstimate, Model, PairVerdict, Runtime, WorkerSpec


class Mlx(Engine):
    """MLX through mlx-lm: Apple's GPUs, or the CPU and CUDA builds on Linux, as the runtime was built."""

    name = "mlx"
    formats = ("mlx",)
    pair_rules = RULES
    upstream = Upstream("mlx-lm", ">=0.32.2,<0.33")

    def worker(self, runtime: Runtime) -> WorkerSpec:
        return python_worker(runtime.python, "paceline_mlx_worker", worker_root())

    def estimate(
        self, model: Model, config: LoadConfig, *, runtime: Runtime, draft: bool = False
    ) -> MemoryEstimate | None:
        from paceline_mlx.memory import estimate

        return estimate(model.path, config, embedding=model.facts.kind is ModelKind.EMBEDDINGS)

    def judge_pair(self, main: Model, draft: Model, rules: str) -> PairVerdict:
        return judge(main, draft, rules)
