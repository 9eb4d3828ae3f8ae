"""Pages that list the files of one project: what they say of each, and which wheel suits a machine.

The formats, HTML and JSON: https://packaging.python.org/en/latest/specifications/simple-repository-api/
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from paceline import untrusted_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from paceline.packages.targets import Target
    from paceline.types import Package

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MOST_BYTES = 64 * 2**20
"""No page is longer."""


@dataclass(frozen=True)
class Listed:
    """A file as a page lists it."""

    name: str
    url: str
    sha256: str | None = None
    size: int | None = None
    requires_python: str | None = None


def address(index: str, project: str) -> str:
    """The page of a project in the index at `index`."""
    return f"{index.rstrip('/')}/{canonicalize_name(project)}/"


def parse(text: str, base: str) -> list[Listed]:
    """What the page `text`, which came from `base`, lists. Raises ValueError for what is JSON and no such page.

    Links that lead from a server to this machine's files, or from https to what anybody can change, are left out.
    """
    found = _from_json(text, base) if text.lstrip().startswith("{") else _from_html(text, base)
    return [file for file in found if _leads(base, file.url)]


def best(listed: Iterable[Listed], package: Package, target: Target) -> Listed | None:
    """Of the wheels of `package` in its version, the one that suits `target` best."""
    order = {tag: place for place, tag in enumerate(target.tags)}
    ranked = []
    for file in listed:
        try:
            name, version, build, tags = parse_wheel_filename(file.name)
            wanted = SpecifierSet(f"=={package.version}").contains(version, prereleases=True)
            admitted = SpecifierSet(file.requires_python or "").contains(target.python, prereleases=True)
        except (InvalidWheelFilename, InvalidSpecifier):
            continue
        places = [order[tag] for tag in tags if tag in order]
        if name == canonicalize_name(package.name) and wanted and admitted and places:
            ranked.append((version, -min(places), build, file))
    return max(ranked, key=lambda entry: entry[:3])[3] if ranked else None


_SHA256 = re.compile(r"[0-9a-f]{64}")


def _from_json(text: str, base: str) -> list[Listed]:
    try:
        entries: list[dict[str, Any]] = untrusted_json.parse(text)["files"]
        return [
            Listed(
                name=str(entry["filename"]),
                url=urljoin(base, str(entry["url"])),
                sha256=_sha256(entry.get("hashes", {}).get("sha256")),
                size=_size(entry.get("size")),
                requires_python=_text(entry.get("requires-python")),
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no page of a package index: {type(error).__name__}: {error}") from None


def _from_html(text: str, base: str) -> list[Listed]:
    reader = _Links()
    reader.feed(text)
    found = []
    for attributes in reader.found:
        url, fragment = urldefrag(urljoin(base, attributes["href"]))
        name = unquote(urlsplit(url).path).rpartition("/")[2]
        sha256 = _sha256(fragment.partition("sha256=")[2])
        found.append(Listed(name, url, sha256, requires_python=attributes.get("data-requires-python")))
    return found


class _Links(HTMLParser):
    """The attributes of a page's links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value for name, value in attrs if value}
        if tag == "a" and "href" in attributes:
            self.found.append(attributes)


def _leads(base: str, url: str) -> bool:
    here, there = urlsplit(base).scheme, urlsplit(url).scheme
    return there == here or (here, there) == ("http", "https")


def _sha256(value: Any) -> str | None:
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else None


def _size(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
