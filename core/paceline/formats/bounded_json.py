"""Read a JSON object from a file that is not trusted."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from paceline.errors import ModelFileError
from paceline.untrusted_json import TooDeep, parse

_HELP = "the file is damaged or was not downloaded completely; download it again"


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The object in `path`, a regular file of at most `limit` bytes. Raises `ModelFileError` for anything else."""
    return parse_json(read_bytes(path, limit), f"{path.parent.name}/{path.name}")


def read_bytes(path: Path, limit: int) -> bytes:
    """What `path` holds, a regular file of at most `limit` bytes. Raises `ModelFileError` for anything else."""
    name = f"{path.parent.name}/{path.name}"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{name} is not a regular file")
        if status.st_size > limit:
            raise ModelFileError(f"{name} has {status.st_size} bytes; at most {limit} make sense", help=_HELP)
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ModelFileError(f"{name} cannot be read: {error.strerror or error}") from error


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """The object `data` holds, UTF-8. Raises `ModelFileError` that calls it `name`."""
    try:
        value = parse(data.decode("utf-8"))
    except TooDeep:
        raise ModelFileError(f"{name} is nested too deeply", help=_HELP) from None
    except ValueError as error:
        raise ModelFileError(f"{name} is not JSON: {error}", help=_HELP) from None
    if not isinstance(value, dict):
        raise ModelFileError(f"{name} holds no JSON object", help=_HELP)
    return value
