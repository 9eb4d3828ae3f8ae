"""The options of commands that load models, or say what loading them would take."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from paceline.loading import LoraAdapter


def load_options(*, without: Collection[str] = ()) -> Callable[[Any], Any]:
    """The flags of a load configuration; the command receives them together as `config`.

    `without`: fields that mean nothing for the command.
    """
    names = [name for name in _OPTIONS if name not in without]

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def with_config(**given: Any) -> Any:
            from paceline.loading import LoadConfig

            return command(config=LoadConfig(**{name: given.pop(name) for name in names}), **given)

        for name in reversed(names):
            with_config = _OPTIONS[name](with_config)
        return with_config

    return decorate


def _shares(context: click.Context, option: click.Parameter, given: str | None) -> tuple[float, ...] | None:
    """`3,1`: numbers from 0 on, not all of them 0."""
    if given is None:
        return None
    numbers = [_number(part) for part in given.split(",")]
    shares = tuple(n for n in numbers if n is not None and n >= 0)
    if len(shares) < len(numbers) or not sum(shares) > 0:
        raise click.BadParameter(f"{given!r} is no list of numbers like 3,1: each from 0 on, not all of them 0.")
    return shares


def _adapters(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> tuple[LoraAdapter, ...] | None:
    """`PATH` or `PATH=SCALE`, any number of them; a relative path is taken from here."""
    from paceline.loading import LoraAdapter

    adapters = []
    for value in given:
        path, _, scale = value.rpartition("=")
        factor = _number(scale) if path else None
        if factor is None:
            path, factor = value, 1.0
        if not path:
            raise click.BadParameter("no path of an adapter is given.")
        adapters.append(LoraAdapter(Path(path).absolute(), factor))
    return tuple(adapters) or None


def _number(text: str) -> float | None:
    """None for what is no finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "context_length": click.option(
        "--context-length", "-c", type=click.IntRange(1), help="Tokens of context of each request."
    ),
    "parallel": click.option(
        "--parallel", type=click.IntRange(1, 64), help="Requests at the same time, each with its context."
    ),
    "queue": click.option(
        "--queue", type=click.IntRange(0), help="Requests that may wait; default: 64 for each at the same time."
    ),
    "prompt_cache_bytes": click.option(
        "--prompt-cache-bytes",
        type=click.IntRange(0),
        help="Memory for conversations that others drove from their place; default: 1 GiB.",
    ),
    "gpu_layers": click.option(
        "--gpu-layers", type=click.IntRange(-1), help="Layers on GPUs; -1, the default, is all."
    ),
    "main_gpu": click.option(
        "--main-gpu", type=click.IntRange(0), help="The one GPU, counted from 0, that takes the whole model."
    ),
    "tensor_split": click.option(
        "--tensor-split", callback=_shares, metavar="N,N,...", help="Each GPU's share; default: as they have room."
    ),
    "offload_kv_cache": click.option(
        "--offload-kv-cache/--no-offload-kv-cache", default=None, help="The cache of layers on GPUs there, or not."
    ),
    "eval_batch_size": click.option(
        "--eval-batch-size", type=click.IntRange(1, 16384), help="The most prompt tokens computed in one step."
    ),
    "flash_attention": click.option(
        "--flash-attention/--no-flash-attention", default=None, help="Default: as is best here."
    ),
    "cache_type_k": click.option(
        "--cache-type-k", metavar="TYPE", help="Type of the cached keys: f16, q8_0, q4_0, ..."
    ),
    "cache_type_v": click.option("--cache-type-v", metavar="TYPE", help="Type of the cached values."),
    "threads": click.option("--threads", type=click.IntRange(1), help="Default: the physical cores."),
    "mmap": click.option("--mmap/--no-mmap", default=None, help="Map the model's file, or read it."),
    "mlock": click.option("--mlock/--no-mlock", default=None, help="Keep the weights from being swapped out."),
    "lora": click.option(
        "--lora", multiple=True, callback=_adapters, metavar="PATH[=SCALE]", help="An adapter; may be repeated."
    ),
}
"""The flag of each field of a load configuration."""
