"""Run the MLX worker: `python -m paceline_mlx_worker`."""

import os

from paceline_worker.backend import Backend
from paceline_worker.loop import run
from paceline_worker.protocol import take_stdout

# Before the engine's libraries load: they print to file descriptor 1, and read these when they are imported.
output_fd = take_stdout()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
os.environ.pop("MLXLM_USE_MODELSCOPE", None)


def make_backend() -> Backend:
    """Load the engine; called in the thread that drives it, so that `health` is answered meanwhile."""
    from paceline_mlx_worker.backend import MlxBackend

    return MlxBackend()


run(make_backend, output_fd)
