"""Embeddings of mlx-lm's models, pooled as a folder of sentence-transformers says.

`modules.json` lists what a text passes through: a transformer, the pooling of its last states, and often their
normalization. `1_Pooling/config.json` says how they are pooled, in one of two spellings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from paceline_mlx_worker.binding import Model
from paceline_worker import embedding
from paceline_worker.protocol import Fault

_POOLINGS = ("cls", "mean", "lasttoken")
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_ALIKE = 0.99
"""Cosine between logits and what they are made of, which only caps and scales come between."""


class Embedder(embedding.Embedder[Model]):
    """A model whose last states are pooled. Texts of a batch are rows, padded at their ends.

    mlx-lm's models look at what came before alone, so nothing depends on what follows a text.
    """

    pads = True

    def __init__(self, model: Model, path: str, n_ctx: int) -> None:
        super().__init__(model, n_ctx)
        self._pooling = read_pooling(Path(path))
        self._inner: Any = getattr(model.net, "model", None)
        if not _gives_last_states(model.net, self._inner):
            kind = getattr(model.net, "model_type", type(model.net).__name__)
            raise Fault("load_failed", f"mlx-lm's model {kind} does not give its last states, so it makes no vectors")

    def compute(self, texts: embedding.Texts) -> list[list[float]]:
        lengths = mx.array([[len(text)] for text in texts])
        longest = max(map(len, texts))
        states = self._inner(mx.array([[*text, *[0] * (longest - len(text))] for text in texts])).astype(mx.float32)
        if self._pooling == "cls":
            pooled = states[:, 0]
        elif self._pooling == "lasttoken":
            pooled = mx.take_along_axis(states, lengths[:, :, None] - 1, axis=1)[:, 0]
        else:
            there = mx.arange(longest)[None, :] < lengths
            pooled = mx.where(there[:, :, None], states, 0).sum(axis=1) / lengths
        vectors: list[list[float]] = pooled.tolist()
        return vectors


def read_pooling(folder: Path) -> str:
    """`cls`, `mean` or `lasttoken`. Raises Fault when the folder says nothing, or something else."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
        unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
        if unknown or "Pooling" not in kinds:
            why = f"passes through {', '.join(unknown)}" if unknown else "is not pooled"
            raise Fault("load_failed", f"modules.json says that a text {why}, which the mlx worker does not do")
        config = json.loads((folder / kinds["Pooling"] / "config.json").read_text(encoding="utf-8"))
        said = config.get("pooling_mode")
        found = [said] if isinstance(said, str) else [name for flag, name in _FLAGS.items() if config.get(flag) is True]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Fault(
            "load_failed",
            f"{folder} does not say how its states become one vector: {type(error).__name__}: {error}",
            help="modules.json and 1_Pooling/config.json, as sentence-transformers write them, do",
        ) from error
    if len(found) != 1 or found[0] not in _POOLINGS:
        raise Fault("load_failed", f"states are pooled as {found}; the mlx worker knows one of {', '.join(_POOLINGS)}")
    return str(found[0])


def _gives_last_states(net: Any, inner: Any) -> bool:
    """Whether the logits are made of what the inner model gives, and of nothing else."""
    head = getattr(net, "lm_head", None) or getattr(getattr(inner, "embed_tokens", None), "as_linear", None)
    if not callable(inner) or head is None:
        return False
    tokens = mx.array([[1, 2, 3, 4, 5, 6, 7]])
    found, expected = (x[0, -1].astype(mx.float32) for x in (head(inner(tokens)), net(tokens)))
    return bool((found * expected).sum() > _ALIKE * mx.linalg.norm(found) * mx.linalg.norm(expected))
