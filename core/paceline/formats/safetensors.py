"""Read the header of a safetensors file: what its tensors are, without them.

Format: 8 bytes little endian with the header's length, the header (a JSON object), the data.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import ModelFileError
from paceline.formats.bounded_json import parse_json

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True)
class SafeTensor:
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count


def read_safetensors(path: Path) -> Mapping[str, SafeTensor]:
    """Tensor names and what they are. Raises `ModelFileError` for a header that does not fit its file."""
    name = f"{path.parent.name}/{path.name}"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{name} is not a regular file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, status.st_size - 8):
                raise ModelFileError(
                    f"{name} claims a header of {length} bytes and has {status.st_size} in all",
                    help="the file is damaged or was not downloaded completely; download it again",
                )
            header = parse_json(file.read(length), f"the header of {name}")
    except OSError as error:
        raise ModelFileError(f"{name} cannot be read: {error.strerror or error}") from error
    data_size = status.st_size - 8 - length
    return {key: _tensor(name, key, entry, data_size) for key, entry in header.items() if key != "__metadata__"}


def _tensor(file: str, name: str, entry: object, data_size: int) -> SafeTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]} if (
            0 <= start <= end <= data_size
            and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
            and len(shape) < 16
        ):
            return SafeTensor(dtype, tuple(shape), end - start)
    raise ModelFileError(
        f"{file} has a tensor {name!r} that lies outside the file or is malformed",
        help="the file is damaged or was not downloaded completely; download it again",
    )
