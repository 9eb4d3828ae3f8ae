"""The help of every command, as a terminal of 80 columns shows it."""

from __future__ import annotations

import pytest
from click import Context, Group

from paceline import cli


def every(command, name):
    yield name, command
    if isinstance(command, Group):
        for each in command.list_commands(Context(command)):
            yield from every(command.get_command(Context(command), each), f"{name} {each}")


@pytest.mark.parametrize(("name", "command"), list(every(cli.cli, "paceline")))
def test_help_fits_and_is_whole(name, command):
    context = Context(command, info_name=name, terminal_width=80)
    shown = command.get_help(context)
    assert max(map(len, shown.splitlines())) <= 80
    if isinstance(command, Group):
        letters = "".join(shown.split())
        for each in command.list_commands(context):
            summary = command.get_command(context, each).get_short_help_str(1000)
            assert summary.endswith(".")
            # The first help line of all is kept beside the commands, so that none is imported for it.
            known = cli.COMMANDS[each][2] if command is cli.cli else summary
            assert "".join(f"{each}{known}".split()) in letters
