"""The sample models that come with Paceline, and what an engine must make of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paceline import paths

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """A model, a prompt, and the tokens that greedy decoding must make of it."""

    path: Path
    prompt: str
    tokens: tuple[int, ...]
    """Each of these is at least 11 times as likely as the next likeliest at its place (2.4 in logarithms), while
    llama.cpp and MLX, 8 and 16 bits, differ by at most 0.02 in the logarithm of its probability; 4 bits give the same
    tokens, too. So whatever kernel, GPU or instruction set computes, these come out, and others are wrong."""


def sample_for(formats: Iterable[str]) -> Sample | None:
    """The smallest shipped sample that an engine of `formats` can read; None where none is shipped."""
    data = json.loads((paths.samples() / "expected.json").read_text(encoding="utf-8"))
    name = next((data["models"][f] for f in formats if f in data["models"]), None)
    return None if name is None else Sample(paths.samples() / name, data["prompt"], tuple(data["tokens"]))
