"""llama.cpp for Paceline, the host's side: the engines `llama.cpp` (CPU, Metal) and `llama.cpp-cuda`.

Uses the public names of `paceline` and of `paceline.formats`. The engine itself runs in its runtime's own process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline import hookimpl
from paceline_llama_cpp.engine import LlamaCpp, LlamaCppCuda

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paceline import Engine

PACELINE_API = 1


@hookimpl
def paceline_engines() -> Iterable[Engine]:
    return [LlamaCpp(), LlamaCppCuda()]
