"""`paceline serve`: the local API over the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paceline.cli.loading import load_options

if TYPE_CHECKING:
    from paceline.loading import LoadConfig


@click.command()
@click.option("--host", "address", default="127.0.0.1", show_default=True, help="Loopback address to listen on.")
@click.option(
    "--port", "-p", default=1234, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--max-loaded", default=3, show_default=True, type=click.IntRange(1), help="Models that requests may load."
)
@click.option("--ttl", default=3600.0, show_default=True, type=click.FloatRange(0), help="Idle seconds; 0 is for ever.")
@click.option(
    "--patience",
    default=600.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds without a sign of life after which a worker that loads or answers is stopped.",
)
@load_options
@click.option("--no-memory-check", is_flag=True, help="Load also what is known not to fit.")
def serve(
    address: str, port: int, max_loaded: int, ttl: float, patience: float, no_memory_check: bool, config: LoadConfig
) -> None:
    """Serve the models of the library through the local API.

    OpenAI-compatible under /v1, LM Studio's API under /api/v0. A model loads when it is first asked for, with the
    options given here as far as the model and its engine can have them.
    """
    from paceline.api.server import run
    from paceline.host import open_host

    host = open_host()
    for runtime_id, problems in host.store.damage().items():
        click.echo(f"warning: the selected runtime {runtime_id} is damaged: {'; '.join(problems)}", err=True)
        click.echo(f"help: paceline runtime repair {runtime_id}, or paceline runtime rollback", err=True)
    run(
        host,
        address=address,
        port=port,
        max_loaded=max_loaded,
        ttl_s=ttl or None,
        defaults=config,
        check_memory=not no_memory_check,
        patience_s=patience,
    )
