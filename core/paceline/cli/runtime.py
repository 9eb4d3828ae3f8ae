"""`paceline runtime`: what is installed, what could be, and what serves which format."""

from __future__ import annotations

import click

from paceline.cli.group import LazyGroup

MODULES = {
    "get": "paceline.cli.getting",
    "hold": "paceline.cli.selecting",
    "link": "paceline.cli.linking",
    "ls": "paceline.cli.listing",
    "pin": "paceline.cli.selecting",
    "prune": "paceline.cli.upkeep",
    "remove": "paceline.cli.upkeep",
    "repair": "paceline.cli.upkeep",
    "rollback": "paceline.cli.selecting",
    "select": "paceline.cli.selecting",
    "survey": "paceline.cli.survey",
    "unhold": "paceline.cli.selecting",
    "unpin": "paceline.cli.selecting",
    "unselect": "paceline.cli.selecting",
    "update": "paceline.cli.update",
    "verify": "paceline.cli.upkeep",
}


@click.group(
    cls=LazyGroup,
    modules=MODULES,
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing matches, or nothing that runs here.",
)
def runtime() -> None:
    """Install, select, update, mend, remove and survey runtimes.

    A QUERY is an engine (`llama.cpp`), an engine with filters (`llama.cpp:cuda`), one version (`llama.cpp@0.3.36`) or a
    full name (`llama.cpp-linux-x86_64-cpu@0.3.36`).
    """
