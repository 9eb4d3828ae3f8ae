"""The query syntax for releases and runtimes.

llama.cpp                           an engine, with its variants (`llama.cpp-cuda`)
llama.cpp:cuda                      those with `cuda` in the rest of their name; several filters may follow
:linux                              any engine
my-build                            the rest of a full name, such as the name of a link
llama.cpp@0.3.36                    one version
llama.cpp-linux-x86_64-cpu@0.3.36   exactly this one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from paceline.errors import UsageError
from paceline.versions import order

if TYPE_CHECKING:
    from collections.abc import Iterable


class Named(Protocol):
    """What a query can find: a release or a runtime."""

    @property
    def engine(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


@dataclass(frozen=True)
class Query:
    """A parsed query. An empty `base` means any engine, no `version` any version."""

    base: str = ""
    filters: tuple[str, ...] = ()
    version: str | None = None

    def is_exact(self, item: Named) -> bool:
        """Whether the query gives the full name of `item` (the version may be left out)."""
        return self.base in (item.name, _rest(item))

    def matches(self, item: Named) -> bool:
        if self.version is not None and not same_version(self.version, item.version):
            return False
        names = ("", item.name, item.engine, _rest(item))
        if self.base not in names and not item.engine.startswith(f"{self.base}-"):
            return False
        rest = item.name.removeprefix(self.base).lower()
        return all(f.lower() in rest for f in self.filters)


def parse(text: str) -> Query:
    """Read a query; raises UsageError for one that has an empty part."""
    head, at, version = text.strip().partition("@")
    base, *filters = head.split(":")
    if (at and not version) or "@" in version or not all(filters) or not (base or filters or version):
        raise UsageError(
            f"{text!r} is no query",
            help="write ENGINE, ENGINE:FILTER, ENGINE@VERSION or a full name, such as `llama.cpp:cpu@0.3.36`",
        )
    return Query(base, tuple(filters), version or None)


def select(text: str, items: Iterable[T]) -> list[T]:
    """The items that `text` matches, by name and then newest first; a full name wins over everything else."""
    query = parse(text)
    found = [item for item in items if query.matches(item)]
    exact = [item for item in found if query.is_exact(item)]
    return by_name_newest_first(exact or found)


def _rest(item: Named) -> str:
    return item.name.removeprefix(f"{item.engine}-")


def by_name_newest_first(items: Iterable[T]) -> list[T]:
    newest_first = sorted(items, key=lambda item: order(item.version), reverse=True)
    return sorted(newest_first, key=lambda item: item.name)


def same_version(a: str, b: str) -> bool:
    """Whether two versions mean the same: `1.0` and `1.0.0` do, `b100` and `b0100` too."""
    return order(a) == order(b)
