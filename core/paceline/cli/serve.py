"""`paceline serve`: the local API over the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paceline.cli.loading import load_options
from paceline.cli.numbers import Finite
from paceline.cli.policy import policy_options

if TYPE_CHECKING:
    from paceline.loading import LoadConfig
    from paceline.preferences import Policy


@click.command()
@click.option("--host", "address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", "-p", default=1234, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--max-loaded", default=3, show_default=True, type=click.IntRange(1), help="Models that requests may load."
)
@click.option("--ttl", default=3600.0, show_default=True, type=Finite(0), help="Idle seconds; 0 is for ever.")
@click.option(
    "--patience",
    default=600.0,
    show_default=True,
    type=Finite(1),
    help="Seconds without a sign of life after which a worker that loads or answers is stopped.",
)
@load_options(without=("lora",))
@click.option("--no-memory-check", is_flag=True, help="Load also what is known not to fit.")
@click.option(
    "--require-token",
    is_flag=True,
    envvar="PACELINE_REQUIRE_TOKEN",
    help="Answer only who has a token (`paceline tokens`), as always when --host is not loopback.",
)
@click.option(
    "--update",
    type=click.Choice(["off", "check", "apply", "before"]),
    default="check",
    show_default=True,
    envvar="PACELINE_UPDATE",
    help="Once, when nothing runs: look for newer releases of the selected runtimes, or install them, too; or install"
    " them before anything is answered.",
)
@policy_options(without=("prefer", "allow_unpinned"), prefix="update-")
@click.option(
    "--update-delay",
    type=Finite(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="So long nothing may have been asked of the server before it begins.",
)
def serve(
    address: str,
    port: int,
    max_loaded: int,
    ttl: float,
    patience: float,
    no_memory_check: bool,
    require_token: bool,
    update: str,
    update_delay: float,
    policy: Policy,
    config: LoadConfig,
) -> None:
    """Serve the models of the library through the local API.

    OpenAI-compatible under /v1, LM Studio's API under /api/v0. A model loads when it is first asked for, with the
    options given here as far as the model and its engine can have them.
    """
    import logging
    from datetime import timedelta

    from paceline.api.administration import UpdateAtStart, UpdateMode
    from paceline.api.server import run
    from paceline.cli.update import update_before_serving
    from paceline.host import open_host

    logging.basicConfig(format="%(message)s")
    logging.getLogger("paceline.api.administration").setLevel(logging.INFO)
    host = open_host()
    if update == UpdateMode.BEFORE:
        update_before_serving(host.store, host.plugins, policy)
    for runtime_id, problems in host.store.damage().items():
        click.echo(f"warning: the selected runtime {runtime_id} is damaged: {'; '.join(problems)}", err=True)
        click.echo(f"help: {host.store.how_to_mend(runtime_id)}; or `paceline runtime rollback`", err=True)
    run(
        host,
        address=address,
        port=port,
        max_loaded=max_loaded,
        ttl_s=ttl or None,
        defaults=config,
        check_memory=not no_memory_check,
        patience_s=patience,
        require_token=require_token,
        update=UpdateAtStart(UpdateMode(update), policy.channel, policy.minimum_age / timedelta(days=1), update_delay),
    )
