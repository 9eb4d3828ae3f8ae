"""The load option `lora`: adapters to add to a model's weights."""

from __future__ import annotations

from dataclasses import dataclass

from paceline_worker.options import Options, invalid, is_finite


@dataclass(frozen=True)
class Adapter:
    """Where a LoRA adapter lies, and how much of it is added to the weights."""

    path: str
    scale: float = 1.0


def read_adapters(options: Options) -> tuple[Adapter, ...]:
    """The adapters asked for, whose files nobody has looked at yet. Raises Fault (`invalid_request`)."""
    found = []
    for i, given in enumerate(options.objects("lora")):
        path, scale = given.get("path"), given.get("scale", 1.0)
        if not isinstance(path, str) or not path:
            raise invalid("lora", f"lora[{i}].path must be the path of an adapter, not {path!r}")
        if not is_finite(scale):
            raise invalid("lora", f"lora[{i}].scale must be a number, not {scale!r}")
        if unknown := sorted(given.keys() - {"path", "scale"}):
            raise invalid("lora", f"lora[{i}] has no {unknown[0]!r}; it has path and scale")
        found.append(Adapter(path, float(scale)))
    return tuple(found)
