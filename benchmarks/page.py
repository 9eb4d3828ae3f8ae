"""Write the tables of kept figures into docs/performance.md, each between the markers that name its file.

    python benchmarks/page.py                                                every table again, from its file
    python benchmarks/page.py --add benchmarks/results/a.json --title "…"    a new section, first of all

A section of the same title gets the new file instead. A file is named as it lies from the page. A section's words are
written by hand, after its markers. The table of how Paceline stands, at the top, holds everything that the page's
sections compare with another server.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import growth
import index
import lossless
import manager
import relay_load
import run
import standing
from engines import ENGINES
from machine import ROOT
from paceline.errors import PacelineError, UsageError
from report import coverage

PAGE = ROOT / "docs" / "performance.md"
NEWEST = "<!-- newest first -->\n"
"""Where a section is added."""

_BLOCK = re.compile(r"<!-- figures: (\S+) -->\n.*?<!-- /figures -->\n", re.DOTALL)
_STANDING = re.compile(r"<!-- standing -->\n.*?<!-- /standing -->\n", re.DOTALL)
_SECTION = re.compile(r"^## (.+?)$|<!-- figures: (\S+) -->", re.MULTILINE)
_STANDINGS: dict[str, Callable[[Path], Sequence[standing.Standing]]] = {
    "matrix": lambda path: standing.of_matrix(run.read(path)),
    "growth": lambda path: standing.of_growth(growth.read(path)),
}
_TABLES: dict[str, Callable[[Path], str]] = {
    "matrix": lambda path: _matrix(path),
    "growth": lambda path: growth.tables(growth.read(path)),
    "lossless": lambda path: lossless.tables(lossless.read(path)),
    "index": lambda path: index.tables(index.read(path)),
    "manager": lambda path: manager.tables(manager.read(path)),
    "relay load": lambda path: relay_load.tables(relay_load.read(path)),
}


def tables_of(path: Path) -> str:
    """What a kept file says, as Markdown. Raises UsageError for a file that no benchmark has kept."""
    return _TABLES[_measures(path)](path)


def written(text: str, folder: Path) -> str:
    """The page with the tables of all files that its markers name, which lie relative to `folder`."""
    text = _BLOCK.sub(lambda found: _block(found[1], folder), text)
    return _STANDING.sub(lambda _: f"<!-- standing -->\n\n{_standing(text, folder)}\n<!-- /standing -->\n", text)


def with_section(text: str, title: str, file: str, folder: Path) -> str:
    """The page with one more section, or with other figures in the section of this title.

    Raises UsageError for a page that does not say where.
    """
    if NEWEST not in text:
        raise UsageError(f"the page has no line {NEWEST.strip()}")
    facts = json.loads((folder / file).read_text())
    machine = ", ".join(str(facts["machine"].get(name)) for name in ("date", "processor", "memory", "paceline"))
    peer = f" Peer: {facts['peer']}." if "peer" in facts else ""
    section = f"\n## {title}\n\n{machine}.{peer}\n[Every figure]({file}).\n\n{_block(file, folder)}"
    known = re.compile(rf"\n## {re.escape(title)}\n(?:(?!\n## ).)*?<!-- /figures -->\n", re.DOTALL)
    if known.search(text):
        return known.sub(lambda _: section, text, count=1)
    return text.replace(NEWEST, f"{NEWEST}{section}", 1)


def _standing(text: str, folder: Path) -> str:
    """A row for each bar of each section that holds Paceline to any."""
    found: list[tuple[str, standing.Standing]] = []
    title = ""
    for heading, file in _SECTION.findall(text):
        title = heading or title
        if file and (of := _STANDINGS.get(_measures(folder / file))):
            found += [(f"[{title}](#{_anchor(title)})", each) for each in of(folder / file)]
    return standing.table(found)


def _matrix(path: Path) -> str:
    """How much was measured, and a row for each cell; `run.py --tables` prints every contender's."""
    records, facts = run.read(path), json.loads(path.read_text())
    cells = ENGINES[facts.get("engine", "llama.cpp")].cells
    return f"{coverage(records, cells)}\n{standing.cell_table(records)}"


def _anchor(title: str) -> str:
    """Of a heading, as GitHub names it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _measures(path: Path) -> str:
    try:
        measures = str(json.loads(path.read_text())["measures"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{path} holds no figures: {error!r}") from error
    return measures


def _block(file: str, folder: Path) -> str:
    return f"<!-- figures: {file} -->\n\n{tables_of(folder / file).strip()}\n\n<!-- /figures -->\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the tables of kept figures into docs/performance.md.")
    parser.add_argument("--add", type=Path, metavar="JSON", help="a file of benchmarks/results, for a new section")
    parser.add_argument("--title", help="of that section")
    options = parser.parse_args(argv)
    if (options.add is None) != (options.title is None):
        parser.error("--add and --title go together")
    try:
        text = PAGE.read_text(encoding="utf-8")
        if options.add:
            file = Path(os.path.relpath(options.add, PAGE.parent))
            text = with_section(text, options.title, file.as_posix(), PAGE.parent)
        PAGE.write_text(written(text, PAGE.parent), encoding="utf-8")
    except PacelineError as error:
        print(f"error: {error.message}", *([f"help: {error.help}"] if error.help else []), sep="\n", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
