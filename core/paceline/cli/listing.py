"""`paceline runtime ls`: what is installed, what of it is selected, and in which state it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from paceline import paths
from paceline.cli import output
from paceline.manager import inventory
from paceline.store import Store, health

if TYPE_CHECKING:
    from paceline.store import Selection


@click.command("ls")
@output.json_option
def ls(as_json: bool) -> None:
    """List the installed runtimes."""
    store = Store(paths.home())
    selection = store.selection()
    installed = [inventory.describe_runtime(r, store, selection) for r in store.runtimes()]
    states = {name: health.glance(store.folder / name) for name in store.incomplete()}
    incomplete = [{"id": n, "state": s.state.value, "problems": list(s.problems)} for n, s in states.items()]
    if as_json:
        output.as_json_text([*installed, *incomplete])
    elif not installed and not incomplete:
        click.echo("no runtime is installed: `paceline runtime get` installs the best for this machine")
    else:
        rows = [
            [
                r["id"],
                "✓" if r["selected_for"] else "",
                ", ".join(f.upper() for f in r["formats"]),
                output.size(r["size_bytes"]) if not r["linked"] else "",
                output.day(r["last_used"]),
                _state_words(r),
            ]
            for r in installed
        ]
        rows += [[n, "", "", "", "", "; ".join((s.state.value, *s.problems))] for n, s in states.items()]
        output.table(["LLM ENGINE", "SELECTED", "MODEL FORMAT", "SIZE", "LAST USED", "STATE"], rows)
        if len(installed) > 1:
            total = sum(r["size_bytes"] or 0 for r in installed if not r["linked"])
            click.echo(f"\n{len(installed)} runtimes, {output.size(total)}; files that they share are counted in each")
        _print_reasons(selection)


def _print_reasons(selection: Selection) -> None:
    """Why models are served by other runtimes than their format's, and versions are passed over."""
    said = [inventory.say_stand_in(model, found) for model, found in selection.stand_ins_in_force().items()]
    said += [inventory.say_hold(release, hold) for release, hold in selection.holds.items()]
    if said:
        click.echo("\n" + "\n".join(said))


def _state_words(installed: dict[str, Any]) -> str:
    marks = [word for word in ("pinned", "held") if installed[word]]
    if installed["linked"]:
        marks.append(f"linked to {installed['linked']}")
    if installed["in_use_by"]:
        marks.append(f"in use by {', '.join(map(str, installed['in_use_by']))}")
    if installed["selected_for_models"]:
        marks.append(f"for {', '.join(installed['selected_for_models'])}")
    return ", ".join((str(installed["state"]), *marks)) + "".join(f"; {p}" for p in installed["problems"])
