"""The ids of models: LM Studio's way, the file's name without its quantization, in lower case.

A quantization is named (`@q4_k_m`) where several models share the name, the publisher (`publisher/name@…`) where
that is not enough.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_QUANTIZATION = re.compile(
    r"[-._ ](?:i1-)?(?P<name>"
    r"(?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0)"  # GGUF: Q4_K_M, IQ2_XXS, UD-Q4_K_XL
    r"|BF16|F(?:P)?(?:8|16|32)|MXFP[48](?:_MOE)?|NVFP4"
    r"|[2-8]bit(?:-(?:DWQ|AWQ|mixed))?"  # MLX: 4bit, 4bit-DWQ
    r")$",
    re.IGNORECASE,
)
_NAMELESS = frozenset({"model", "ggml-model", "pytorch_model", ""})


@dataclass(frozen=True)
class Name:
    """The parts an id is made of, all lower case."""

    base: str
    quantization: str | None
    """As the file's name says it."""
    publisher: str


def name_of(path: Path, publisher: str, model_format: str) -> Name:
    """`…/Qwen2.5-7B-Instruct-Q4_K_M.gguf` is `qwen2.5-7b-instruct` in `q4_k_m`."""
    stem = path.stem if path.suffix.lower() == f".{model_format}" else path.name
    base, quantization = _split(_SHARD.sub("", stem))
    if base.lower() in _NAMELESS:
        # `publisher/Model-GGUF/model-Q8_0.gguf`: the folder names the model.
        folder, of_folder = _split(re.sub(r"-gguf$", "", path.parent.name, flags=re.IGNORECASE))
        base, quantization = folder or base, quantization or of_folder
    return Name(base.lower(), quantization.lower() if quantization else None, publisher.lower())


def ids(names: Sequence[Name], quantizations: Sequence[str]) -> list[str]:
    """The id of each model, unique; `quantizations` are what the files themselves say, for names that do not."""
    bases = Counter(name.base for name in names)
    short = [
        name.base if bases[name.base] == 1 else f"{name.base}@{name.quantization or quantization.lower()}"
        for name, quantization in zip(names, quantizations, strict=True)
    ]
    shorts = Counter(short)
    full = [s if shorts[s] == 1 else f"{name.publisher}/{s}" for name, s in zip(names, short, strict=True)]
    taken: Counter[str] = Counter()
    result = []
    for model_id in full:
        taken[model_id] += 1
        result.append(model_id if taken[model_id] == 1 else f"{model_id}#{taken[model_id]}")
    return result


def _split(stem: str) -> tuple[str, str | None]:
    match = _QUANTIZATION.search(stem)
    if match is None:
        bare = _QUANTIZATION.fullmatch("-" + stem)
        return ("", bare["name"]) if bare else (stem, None)
    return stem[: match.start()], match["name"]
