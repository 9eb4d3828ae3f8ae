"""The options of commands that load models, or say what loading them would take."""

from __future__ import annotations

import functools
from typing import Any

import click

_OPTIONS = (
    click.option("--context-length", "-c", type=click.IntRange(1), help="Tokens of context of each request."),
    click.option("--parallel", type=click.IntRange(1, 64), help="Requests at the same time, each with its context."),
    click.option("--gpu-layers", type=click.IntRange(-1), help="Layers on GPUs; -1, the default, is all."),
    click.option("--flash-attention/--no-flash-attention", default=None, help="Default: as is best here."),
    click.option("--cache-type-k", metavar="TYPE", help="Type of the cached keys: f16, q8_0, q4_0, ..."),
    click.option("--cache-type-v", metavar="TYPE", help="Type of the cached values."),
    click.option("--threads", type=click.IntRange(1), help="Default: the physical cores."),
)
_NAMES = ("context_length", "parallel", "gpu_layers", "flash_attention", "cache_type_k", "cache_type_v", "threads")


def load_options(command: Any) -> Any:
    """The flags of a load configuration; the command receives them together as `config`."""

    @functools.wraps(command)
    def with_config(**given: Any) -> Any:
        from paceline.loading import LoadConfig

        return command(config=LoadConfig(**{name: given.pop(name) for name in _NAMES}), **given)

    for option in reversed(_OPTIONS):
        with_config = option(with_config)
    return with_config
