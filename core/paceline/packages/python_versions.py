"""Versions of Python as locks and bundles name them, `3.12`: the one here, and those that a specifier admits."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

LOCKED = ("3.11", "3.12", "3.13", "3.14")
"""Those that a registry is locked for, as far as a release admits them."""

_ALL = tuple(f"3.{minor}" for minor in range(100))


def here() -> str:
    """The Python that runtimes are built on here."""
    return ".".join(platform.python_version_tuple()[:2])


def is_admitted(python: str, specifier: str | None) -> bool:
    """Whether `specifier` (PEP 440; None admits all) admits the newer releases of `python`."""
    return SpecifierSet(specifier or "").contains(f"{python}.99")


def admitted(specifier: str | None, among: Iterable[str] = LOCKED) -> list[str]:
    return [python for python in among if is_admitted(python, specifier)]


def specifier_of(pythons: Collection[str]) -> str:
    """A PEP 440 specifier that admits exactly `pythons`: `==3.12.*`, or `>=3.11,<3.14,!=3.12.*`."""
    minors = sorted({_minor(python) for python in pythons})
    first, last = minors[0], minors[-1]
    if first == last:
        return f"==3.{first}.*"
    gaps = [f"!=3.{minor}.*" for minor in range(first, last) if minor not in minors]
    return ",".join([f">=3.{first}", f"<3.{last + 1}", *gaps])


def named_by(specifier: str | None) -> list[str]:
    """What `specifier_of` was given, ascending; none for a specifier without an upper bound."""
    found = admitted(specifier, _ALL)
    return [] if _ALL[-1] in found else found


def listed(pythons: Collection[str]) -> str:
    """In a sentence, ascending: `3.11, 3.12 and 3.13`."""
    *others, last = sorted(pythons, key=_minor)
    return f"{', '.join(others)} and {last}" if others else last


def _minor(python: str) -> int:
    return int(python.partition(".")[2])
