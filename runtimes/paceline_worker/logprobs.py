"""What the model thought of a token: its log probability, and those of the likeliest others.

Of the main model's own distribution, the softmax of its raw logits, before temperature, bias, penalties, truncation and
grammar. So they are the same with and without a draft.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Logits: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""One position's logits, shape (n_vocab,)."""

_LEAST = -9999.0
"""What stands for a probability of 0, whose logarithm JSON cannot say."""


def logprobs(logits: Logits, token: int, alternatives: int, piece: Callable[[int], bytes]) -> dict[str, object]:
    """The fourth element of a piece of docs/worker-protocol.md for `token`.

    `top` holds the `alternatives` likeliest tokens, the likeliest first and equals by their ids.
    """
    top = _likeliest(logits, alternatives)
    values: Logits = logits[[token, *top]].astype(np.float64)
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest, dtype=np.float64).sum()))
    own, *others = np.maximum(values - total, _LEAST).tolist()
    return {
        "logprob": own,
        "bytes": list(piece(token)),
        "top": [[t, value, list(piece(t))] for t, value in zip(top, others, strict=True)],
    }


def _likeliest(logits: Logits, count: int) -> list[int]:
    if count == 0:
        return []
    if count < len(logits):
        tokens = np.argpartition(logits, len(logits) - count)[len(logits) - count :]
    else:
        tokens = np.arange(len(logits))
    likeliest_first: list[int] = tokens[np.lexsort((tokens, -logits[tokens]))].tolist()
    return likeliest_first
