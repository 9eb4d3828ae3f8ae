"""Adapters as mlx-lm trains and reads them: a folder with their weights and how they are added.

Format: mlx-lm 0.32.2's `tuner/utils.py` (`load_adapters`). `adapter_config.json` says of which kind it is
(`fine_tune_type`: `lora`, `dora` or `full`), how many layers from the last on it changes, and rank and scale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_adapters

from paceline_worker.adapters import Adapter
from paceline_worker.options import invalid
from paceline_worker.protocol import Fault

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"

_KINDS = ("lora", "dora", "full")


def only(adapters: Sequence[Adapter]) -> Adapter | None:
    """The one adapter that a model can have, as far as its folder tells usable. Raises Fault (`invalid_request`)."""
    if not adapters:
        return None
    if len(adapters) > 1:
        raise invalid("lora", f"mlx adds one adapter to a model, not {len(adapters)}: fuse them beforehand")
    adapter = adapters[0]
    for name in (CONFIG, WEIGHTS):
        if not Path(adapter.path, name).is_file():
            raise _unusable(adapter, f"it has no {name}; adapters of mlx-lm are folders with {CONFIG} and {WEIGHTS}")
    kind = _kind(adapter)
    if kind not in _KINDS:
        raise _unusable(adapter, f"its fine_tune_type is {kind!r}, not one of {', '.join(_KINDS)}")
    if kind != "lora" and adapter.scale != 1:
        raise invalid("lora", f"only adapters of the type lora can be scaled; {adapter.path} is of the type {kind}")
    return adapter


def add(net: Any, adapter: Adapter) -> None:
    """Have a model's layers add an adapter. Raises Fault (`invalid_request`) for one that is not made for it."""
    try:
        load_adapters(net, adapter.path)
    except Exception as error:
        # Whatever a damaged or foreign folder makes mlx-lm raise.
        why = f"{error} is missing in {CONFIG}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise _unusable(adapter, why) from error
    net.eval()
    for module in net.modules():
        if "lora_a" in module:
            module.scale *= adapter.scale


def _kind(adapter: Adapter) -> object:
    try:
        config = json.loads(Path(adapter.path, CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(adapter, f"{CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise _unusable(adapter, f"{CONFIG} holds no object")
    return config.get("fine_tune_type", "lora")


def _unusable(adapter: Adapter, reason: str) -> Fault:
    return invalid("lora", f"the adapter {adapter.path} cannot be used with this model: {reason}")
