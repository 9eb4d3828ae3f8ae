"""A group of commands: its help shows each one's first sentence whole, and a command that it lacks is guessed at."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Group(click.Group):
    """As click's, which cuts the first sentence off where the line ends, and knows no other tool's words."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(sys.maxsize)) for n, c in commands.items() if c is not None])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name.startswith("-") or ctx.resilient_parsing or self.get_command(ctx, name) is not None:
            return super().resolve_command(ctx, args)
        meant = [f"`paceline {path}`" for path in _meant(ctx, self, name)]
        guess = f"\nDid you mean {' or '.join(meant)}?" if meant else ""
        raise click.UsageError(f"No such command {name!r}.{guess}", ctx)


class LazyGroup(Group):
    """Imports the module of a command when that command is asked for: to start one, the others cost nothing."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **options: Any) -> None:
        """`modules`: by name of a command, in the order of the help, the module that has it under this name."""
        super().__init__(*args, **options)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = self.modules.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), cmd_name)
        gc.freeze()  # what was imported stays: to look through it again and again is a tenth of a short command
        return command


_GUESSES = 3
OTHER_WORDS = {
    **dict.fromkeys(("add",), ("get", "install", "trust", "create")),
    **dict.fromkeys(("install", "pull", "download", "search", "available"), ("get",)),
    **dict.fromkeys(("uninstall", "rm", "delete", "del"), ("remove", "revoke")),
    **dict.fromkeys(("list", "show", "info"), ("ls",)),
    **dict.fromkeys(("upgrade", "update"), ("update", "refresh")),
    **dict.fromkeys(("use", "set", "switch", "default", "activate"), ("select",)),
    **dict.fromkeys(("run", "start", "up"), ("serve",)),
    **dict.fromkeys(("stop", "down"), ("unload",)),
    **dict.fromkeys(("chat", "generate"), ("demo",)),
    **dict.fromkeys(("status",), ("ps", "ls")),
    **dict.fromkeys(("check",), ("verify", "doctor")),
    **dict.fromkeys(("fix",), ("repair", "doctor")),
    **dict.fromkeys(("clean", "gc"), ("prune",)),
    **dict.fromkeys(("new", "export"), ("create",)),
    **dict.fromkeys(("import",), ("install",)),
    **dict.fromkeys(("revert", "downgrade"), ("rollback",)),
}
"""What other tools call a command, and what it is called here, the likeliest first."""


def _meant(ctx: click.Context, group: click.Group, name: str) -> list[str]:
    """The commands that may be meant by `name`, by their words after `paceline`.

    Sought is in the group itself and at the top, then in all other groups; a slip of the pen in this order, too.
    """
    import difflib

    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    here = _words(ctx)
    own, top = set(group.list_commands(ctx)), set(root.command.list_commands(root))
    wanted = (name.lower(), *OTHER_WORDS.get(name.lower(), ()))
    for path, commands in ((here, own), ([], top)):
        if found := next((word for word in wanted if word in commands), None):
            return [" ".join([*path, found])]
    if close := difflib.get_close_matches(name, sorted(own), _GUESSES):
        return [" ".join([*here, word]) for word in close]
    elsewhere = [
        f"{other} {found}"
        for other, commands in _groups(root, root.command)
        if (found := next((word for word in wanted if word in commands), None))
    ]
    return elsewhere[:_GUESSES] or difflib.get_close_matches(name, sorted(top), _GUESSES)


def _words(ctx: click.Context) -> list[str]:
    """What was said after `paceline` to come to this group."""
    return [] if ctx.parent is None else [*_words(ctx.parent), str(ctx.info_name)]


def _groups(ctx: click.Context, root: click.Group) -> Iterator[tuple[str, set[str]]]:
    """The groups below `root` with the names of their commands, that of the runtimes first."""
    for name in sorted(root.list_commands(ctx), key="runtime".__ne__):
        command = root.get_command(ctx, name)
        if isinstance(command, click.Group):
            yield name, set(command.list_commands(ctx))
