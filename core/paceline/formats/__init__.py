"""How models of a format are found on disk and what their metadata says.

Public to plugins: an engine plugin may import the modules of this package to word a refusal or to build its own
format on them. Importing the package reads no file and imports neither parser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.formats.gguf_format import GgufFormat
from paceline.formats.mlx import MlxFormat

if TYPE_CHECKING:
    from paceline.engine import ModelFormat


def builtin_formats() -> tuple[ModelFormat, ...]:
    """The formats the host itself can find and read: `gguf` and `mlx`."""
    return (GgufFormat(), MlxFormat())
