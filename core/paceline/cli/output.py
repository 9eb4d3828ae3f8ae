"""How every command prints: plain aligned tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from paceline.types import Release, Verdict


def json_option(command: Any) -> Any:
    """The `--json` flag that every list has; the command receives it as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, each as wide as its widest cell."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def reason(release: Release, verdict: Verdict) -> str:
    """A verdict's sentence for a row that names the release already."""
    return verdict.message.removeprefix(f"{release.id} ")


def notes(releases: Iterable[Release]) -> None:
    """Print what registries say of releases, a paragraph for each that has notes."""
    for release in releases:
        if release.notes:
            click.echo(f"\n{release.id}: {release.notes}")


def note(remark: str) -> None:
    """Say on stderr what explains what may surprise."""
    say(f"note: {remark}")


def say(sentence: str) -> None:
    """Say on stderr what is going on."""
    click.echo(sentence, err=True)


def as_json_text(value: object) -> None:
    """Print dataclasses, mappings, sequences and paths as indented JSON."""
    click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def plain(value: object) -> Any:
    """`value` as JSON knows it: dataclasses become objects, paths strings, sets sorted lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, PurePath):
        return str(value)
    return value


def size(n: int | None) -> str:
    """Bytes for people: `7.9 MB`, decimal units as model pages use them."""
    if n is None:
        return "?"
    value = float(n)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def day(moment: str | None) -> str:
    """An ISO time for people: its day in the local time zone, `never` for None."""
    return datetime.fromisoformat(moment).astimezone().date().isoformat() if moment is not None else "never"
