"""`paceline ls` and `paceline pairs`: the models of the library, and which of them can draft for which."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from paceline.cli import output

if TYPE_CHECKING:
    from paceline.library import Library
    from paceline.library.pairs import Pair
    from paceline.types import Model


@click.command()
@output.json_option
def ls(as_json: bool) -> None:
    """List the models of the library."""
    from paceline.library import open_library
    from paceline.manager import plugin_generations

    library = open_library(plugin_generations.loaded())
    models = library.models()
    if as_json:
        output.as_json_text([_describe(m) for m in models])
    else:
        rows = [
            [
                _printable(m.id),
                m.facts.kind.value,
                m.format,
                _printable(m.facts.arch or "?"),
                m.facts.quantization or "?",
                output.size(m.facts.size_bytes),
                str(m.facts.max_context_length or "?"),
                _printable(m.publisher),
            ]
            for m in models
        ]
        output.table(["MODEL", "TYPE", "FORMAT", "ARCH", "QUANT", "SIZE", "CONTEXT", "PUBLISHER"], rows)
        _say_where_models_go()
    _complain(library)


@click.command()
@click.argument("model", required=False)
@click.option("--rules", help="A variant of the rules: llama.cpp has `today` and `2025-02`.")
@click.option("--all", "everything", is_flag=True, help="Show refused pairs too, each with the reason.")
@output.json_option
def pairs(model: str | None, rules: str | None, everything: bool, as_json: bool) -> None:
    """List draft/main pairs, each with its verdict and reason.

    With MODEL: the drafts that fit that main model, and why the others do not.
    """
    from paceline.library import open_library
    from paceline.library.pairs import open_pairs
    from paceline.manager import plugin_generations

    plugins = plugin_generations.loaded()
    library = open_library(plugins)
    main = library.get(model) if model else None
    found = open_pairs(library, plugins).pairs(main, rules, refused=everything or main is not None)
    if as_json:
        output.as_json_text([{"main": p.main.id, "draft": p.draft.id, "verdict": p.verdict} for p in found])
        return
    if found:
        _print_pairs(found)
    else:
        click.echo(
            "no two models of the library make a pair; `paceline pairs --all` says why"
            if not main
            else f"the library has no other model than {main.id}"
        )
    _complain(library)


def _print_pairs(found: list[Pair]) -> None:
    found = sorted(found, key=lambda p: (p.main.id, not p.verdict.ok))
    rows = [[_printable(p.main.id), _printable(p.draft.id), p.verdict.status.value, _reason(p)] for p in found]
    output.table(["MAIN", "DRAFT", "VERDICT", "REASON"], rows)


def _reason(pair: Pair) -> str:
    return "; ".join([pair.verdict.message, *(f"note: {w}" for w in pair.verdict.warnings)])


def _describe(model: Model) -> dict[str, object]:
    """The model as JSON, without what only the pair rules need."""
    facts = output.plain(model.facts)
    del facts["pairing"]
    return {"id": model.id, "format": model.format, "publisher": model.publisher, "path": str(model.path), **facts}


def _say_where_models_go() -> None:
    from paceline import paths

    click.echo(f"\nModels are found in {paths.models()} (publisher/model/file.gguf, or a folder for MLX)")
    for folder in paths.extra_models():
        click.echo(f"                and {folder}")


def _complain(library: Library) -> None:
    for problem in library.problems():
        path = os.fsencode(problem.path).decode("utf-8", "replace")
        click.echo(f"not listed: {_printable(path)}: {_printable(problem.error.message)}", err=True)


def _printable(text: str) -> str:
    """Files choose these texts; what would steer a terminal is shown as a question mark."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
