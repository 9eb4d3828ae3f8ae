"""Order versions by meaning, never as text: `b10000` is newer than `b9999`, driver 535.104 newer than 535.9."""

from __future__ import annotations

import re
from typing import Any

_NUMBERS = re.compile(r"\d+(?:\.\d+)*")
_CHUNKS = re.compile(r"(\d+)|([^\W\d_]+)")


def numbers(text: str) -> tuple[int, ...]:
    """The dotted number that `text` starts with, without trailing zeros: `6.1.0-13-amd64` gives (6, 1).

    For facts of the machine (drivers, kernels, C libraries), which follow no version scheme. Raises ValueError
    for a text that does not start with a digit.
    """
    found = _NUMBERS.match(text.strip())
    if found is None:
        raise ValueError(f"{text!r} does not start with a version number")
    parts = [int(part) for part in found.group().split(".")]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def at_least(found: str, floor: str) -> bool:
    """Whether the version `found` is `floor` or newer. Raises ValueError like `numbers`."""
    return numbers(found) >= numbers(floor)


LOCAL = "local"
"""Marks, in the local part of a PEP 440 version, a package that came from this machine: `0.3.36+local.1a2b3c4d`."""


def is_local(version: str) -> bool:
    """Whether a runtime of this version holds a package that came from this machine."""
    return LOCAL in re.split(r"[._-]", version.partition("+")[2])


def order(version: str) -> tuple[int, Any]:
    """A sort key for versions of releases: PEP 440 where it applies, else numbers by value and words by letter.

    The two families never compare with each other: every PEP 440 version is the newer one.
    """
    from packaging.version import InvalidVersion, Version

    try:
        return 1, Version(version)
    except InvalidVersion:
        chunks = _CHUNKS.findall(version.lower())
        return 0, tuple((1, int(number), "") if number else (0, 0, word) for number, word in chunks)


def is_newer(version: str, than: str) -> bool:
    """Whether `version` comes after `than` by `order`; plain numbers are compared without importing packaging."""
    if _NUMBERS.fullmatch(version) and _NUMBERS.fullmatch(than):
        return numbers(version) > numbers(than)
    return order(version) > order(than)
