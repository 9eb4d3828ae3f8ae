"""What is measured of each engine: its peer, its quantizations, and the models of a cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import heavy_pair
import mlx_pair
import mlx_peer
import peer
from contenders import LLAMA_SERVER, MLX_SERVER, PACELINE, Models
from prompts import KINDS

STREAMS = (1, 8, 4)
TEMPERATURES = (0.0, 0.8)


@dataclass(frozen=True)
class Engine:
    peer: str
    quantizations: tuple[str, ...]
    """Of the heavy pair; what says most comes first."""
    sample: str
    """In place of a quantization: the small sample model itself."""
    models: Callable[[str, bool], Models]
    """Of a quantization, and whether the draft is the bad one; made where the cache lacks them."""
    version: Callable[[], str]
    """Of the peer."""

    @property
    def quick(self) -> tuple[str, ...]:
        """A few draft lengths of both servers."""
        lengths = tuple(f"{server}+n{n}" for n in (2, 3, 4, 8) for server in (PACELINE, self.peer))
        return (PACELINE, self.peer, f"{PACELINE}+auto", *lengths)

    @property
    def cells(self) -> int:
        """Of the whole matrix."""
        return len(self.quantizations) * len(KINDS) * len(STREAMS) * len(TEMPERATURES)


def _gguf(quantization: str, bad_draft: bool) -> Models:
    if quantization == "sample":
        pair = heavy_pair.heavy_pair(())
        main, main_id = heavy_pair.sample_main(), "paceline-coder-7m"
    else:
        pair = heavy_pair.heavy_pair([quantization])
        main, main_id = pair.mains[quantization], f"{heavy_pair.NAME}@{quantization.lower()}"
    good = (heavy_pair.sample_draft(), "paceline-coder-3m")
    draft, draft_id = (pair.bad_draft, heavy_pair.BAD_DRAFT) if bad_draft else good
    return Models(main, draft, main_id, draft_id, pair.folder)


def _mlx(quantization: str, bad_draft: bool) -> Models:
    main, draft = mlx_pair.sample_folders()
    pair = mlx_pair.mlx_pair(() if quantization == _MLX_SAMPLE else (quantization,))
    if quantization != _MLX_SAMPLE:
        main = pair.mains[quantization]
    draft = pair.bad_draft if bad_draft else draft
    return Models(main, draft, main.name, draft.name, pair.folder)


_MLX_SAMPLE = "sample-16-bit"

ENGINES = {
    "llama.cpp": Engine(LLAMA_SERVER, ("Q8_0", "F16", "Q4_K_M"), "sample", _gguf, peer.version),
    "mlx": Engine(MLX_SERVER, ("16-bit", "8-bit", "4-bit"), _MLX_SAMPLE, _mlx, mlx_peer.version),
}
