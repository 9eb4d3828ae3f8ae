"""The help of every command, as a terminal of 80 columns shows it."""

from __future__ import annotations

import pytest
from click import Context, Group, UsageError

from paceline import cli
from paceline.cli.group import OTHER_WORDS


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
            known = cli.COMMANDS[each][1] if command is cli.cli else summary
            assert "".join(f"{each}{known}".split()) in letters


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("runtime install llama.cpp", ["runtime get"]),
        ("runtime pull llama.cpp", ["runtime get"]),
        ("runtime uninstall llama.cpp", ["runtime remove"]),
        ("runtime list", ["runtime ls"]),
        ("runtime Upgrade", ["runtime update"]),
        ("runtime use llama.cpp", ["runtime select"]),
        ("runtime start", ["serve"]),
        ("runtime slect x", ["runtime select", "runtime unselect"]),
        ("install llama.cpp", ["runtime get", "bundle install", "plugins install"]),
        ("list", ["ls"]),
        ("run a-model", ["serve"]),
        ("stop a-model", ["unload"]),
        ("select llama.cpp", ["runtime select"]),
        ("srve", ["serve"]),
        ("bundle export x", ["bundle create"]),
        ("plugins add x", ["plugins install"]),
        ("registry update", ["registry refresh"]),
        ("registry keys rotat", ["registry keys rotate"]),
        ("tokens delete x", ["tokens revoke"]),
        ("bundle pull x", ["runtime get"]),
        ("runtime xyzzy", []),
    ],
)
def test_what_other_tools_call_it_is_understood(said, meant):
    with pytest.raises(UsageError) as refused:
        cli.cli.main(said.split(), standalone_mode=False)
    word = next(w for w in said.split() if w not in ("runtime", "bundle", "plugins", "registry", "keys", "tokens"))
    guess = f"\nDid you mean {' or '.join(f'`paceline {m}`' for m in meant)}?" if meant else ""
    assert refused.value.format_message() == f"No such command {word!r}.{guess}"
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("meant", [m for words in OTHER_WORDS.values() for m in words])
def test_every_guess_is_a_command(meant):
    assert any(name.split()[-1] == meant for name, _ in every(cli.cli, "paceline"))


def test_a_guess_is_shown_to_people(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["paceline", "runtime", "install", "llama.cpp"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "Error: No such command 'install'.\nDid you mean `paceline runtime get`?\n" in capsys.readouterr().err
