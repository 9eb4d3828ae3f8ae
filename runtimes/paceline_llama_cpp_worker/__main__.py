"""Run the llama.cpp worker: `python -m paceline_llama_cpp_worker`."""

import sys
from pathlib import Path

from paceline_llama_cpp_worker import dlls
from paceline_worker.backend import Backend
from paceline_worker.loop import run
from paceline_worker.protocol import take_stdout

# Before the engine's libraries load: they print to file descriptor 1.
output_fd = take_stdout()
if sys.platform == "win32":
    dlls.make_found(Path(sys.prefix))


def make_backend() -> Backend:
    """Load the engine; called in the thread that drives it, so that `health` is answered meanwhile."""
    from paceline_llama_cpp_worker.backend import LlamaBackend

    return LlamaBackend()


run(make_backend, output_fd)
