"""A group of commands whose help shows each one's first sentence whole, on as many lines as it takes."""

from __future__ import annotations

import sys

import click


class Group(click.Group):
    """As click's, which cuts the first sentence off where the line ends."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(sys.maxsize)) for n, c in commands.items() if c is not None])
