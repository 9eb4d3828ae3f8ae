"""`paceline estimate`: what memory loading a model would take, and whether that is there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from paceline.cli import output
from paceline.cli.loading import load_options

if TYPE_CHECKING:
    from paceline.loading import LoadConfig, MemoryEstimate
    from paceline.serving.fit import Room
    from paceline.types import Model


@click.command(epilog="Exit codes: 0 it fits, or nobody can tell; 1 failed; 2 wrong usage; 4 it does not fit.")
@click.argument("model")
@click.option("--draft", "draft_id", metavar="MODEL", help="A draft beside it.")
@load_options(without=("queue", "prompt_cache_bytes", "mmap", "mlock"))
@output.json_option
@click.pass_context
def estimate(ctx: click.Context, model: str, draft_id: str | None, as_json: bool, config: LoadConfig) -> None:
    """Say what memory loading MODEL would take, told from its metadata, and whether it fits this machine now.

    Nothing is loaded. Memory of GPUs is compared with all they have, as nobody is asked what is free there, and they
    are counted in the survey's order, which an engine need not share.
    """
    from paceline.host import open_host
    from paceline.serving import fit
    from paceline.serving.configuration import check_config, selected_runtime
    from paceline.survey import known_survey

    host = open_host()
    main, draft = host.library.get(model), host.library.get(draft_id) if draft_id else None
    check_config(main, config)
    runtime = selected_runtime(host.store, main)
    engine = host.plugins.engine(runtime.engine)
    found: list[tuple[Model, MemoryEstimate | None]] = [(main, fit.estimate(engine, main, config, runtime))]
    first = found[0][1]
    if draft is not None:
        beside = config
        if first is not None:
            beside = replace(config, context_length=first.context_length, parallel=first.parallel)
        found.append((draft, fit.estimate(engine, draft, beside, runtime, draft=True)))
    survey = known_survey()
    gpus = [gpu.memory_bytes for gpu in survey.gpus.value or () if not gpu.unified]
    sizes = tuple(size for size in gpus if size)
    room = fit.Room(survey.memory_available.value, sizes if sizes and len(sizes) == len(gpus) else None)
    known = [e for _, e in found if e is not None]
    fits = room.holds(*known) if len(known) == len(found) else None
    if as_json:
        output.as_json_text(
            {
                "runtime": runtime.id,
                "models": [{"id": m.id, "estimate": _plain(e)} for m, e in found],
                "needed": {"host": sum(e.on_host for e in known), "gpus": sum(e.on_gpu for e in known)},
                "available": {"host": room.host, "gpus": room.on_gpus},
                "fits": fits,
            }
        )
    else:
        _print(found, room, fits, survey.memory_available.source)
    ctx.exit(4 if fits is False else 0)


def _plain(estimate: MemoryEstimate | None) -> dict[str, object] | None:
    return None if estimate is None else {**output.plain(estimate), "total": estimate.total}


def _print(found: list[tuple[Model, MemoryEstimate | None]], room: Room, fits: bool | None, source: str) -> None:
    from paceline.serving.fit import shown, size

    for model, estimate in found:
        click.echo(f"{model.id}: " + (shown(estimate) if estimate is not None else "its engine cannot tell"))
    known = [e for _, e in found if e is not None]
    on_host, on_gpus = sum(e.on_host for e in known), sum(e.on_gpu for e in known)
    have = "unknown" if room.host is None else f"{size(room.host)} ({source})"
    click.echo(f"memory:  {size(on_host)} needed, available {have}")
    if on_gpus:
        have = "unknown" if room.on_gpus is None else size(room.on_gpus)
        click.echo(f"on GPUs: {size(on_gpus)} needed, of {have}")
    click.echo({True: "It fits.", False: "It does not fit.", None: "Nobody can tell whether it fits."}[fits])
