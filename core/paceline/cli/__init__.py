"""The command line. One file per command; a command's module is imported when the command is used."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

import paceline
from paceline import network, refusals
from paceline.cli.group import LazyGroup
from paceline.errors import PacelineError

# name -> (module, help line). The help line is repeated here so that `--help` imports no command.
COMMANDS = {
    "demo": ("paceline.cli.demo", "Install the best runtime and generate with the sample pair."),
    "serve": ("paceline.cli.serve", "Serve the models of the library through the local API."),
    "ps": ("paceline.cli.running", "List the models that a running server has loaded."),
    "load": ("paceline.cli.running", "Load a model into a running server."),
    "unload": ("paceline.cli.running", "Unload a model from a running server."),
    "tokens": ("paceline.cli.tokens", "Create, list and revoke the tokens of the local API."),
    "ls": ("paceline.cli.models", "List the models of the library."),
    "pairs": ("paceline.cli.models", "List draft/main pairs, each with its verdict and reason."),
    "estimate": ("paceline.cli.estimate", "Say what memory loading a model would take, and if it fits."),
    "runtime": ("paceline.cli.runtime", "Install, select, remove and survey runtimes."),
    "bundle": ("paceline.cli.bundle", "Carry releases to machines without a network, in one file."),
    "registry": ("paceline.cli.registry", "Trust, refresh, make, sign and serve registries."),
    "plugins": ("paceline.cli.plugins", "List, install, update and remove engine plugins."),
    "doctor": ("paceline.cli.doctor", "Look at everything, say what is wrong and how to mend it."),
}


class _Commands(LazyGroup):
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    modules={name: module for name, (module, _) in COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 nothing matches, or nothing that runs here, 130 cancelled. "
    "Where a command has others, its help says so.",
)
@click.version_option(paceline.__version__, prog_name="paceline")
@click.option("--offline", is_flag=True, help="Send no request from this machine (PACELINE_OFFLINE=1 does the same).")
def cli(offline: bool) -> None:
    """Paceline runs local language models: it installs their engines, pairs draft with main models for
    speculative decoding, and serves them through one local API."""
    if offline:
        network.go_offline()


def main() -> NoReturn:
    """Entry point of the `paceline` command."""
    try:
        status = cli.main(standalone_mode=False)
    except PacelineError as error:
        _complain(error)
        sys.exit(error.exit_status)
    except click.exceptions.Abort:
        click.echo("cancelled", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        refused = refusals.refusal(error)
        if refused is None:
            raise
        _complain(refused)
        sys.exit(refused.exit_status)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(error: PacelineError) -> None:
    click.echo(f"error: {error.message}", err=True)
    if error.help:
        click.echo(f"help: {error.help}", err=True)
