"""Everything that can be wrong around Paceline, looked at in one go; nothing is changed but by `mend`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline import refusals
from paceline.doctor import installed, machine, surroundings
from paceline.doctor.finding import Finding, Patient, Status
from paceline.errors import PacelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["CHECKS", "Finding", "Patient", "Status", "examine", "mend"]

CHECKS: dict[str, Callable[[Patient], Iterable[Finding]]] = {
    "versions": surroundings.versions,
    "environment": surroundings.environment,
    "home": surroundings.home,
    "cache": surroundings.cache,
    "disk": surroundings.disk,
    "plugins": installed.plugins,
    "runtimes": installed.runtimes,
    "selection": installed.selection,
    "updates": installed.updates,
    "leftovers": installed.leftovers,
    "clock": installed.clock,
    "models": installed.models,
    "machine": machine.releases,
    "index": machine.index,
    "port": machine.port,
}
"""By name, in the order they are told."""


def examine(patient: Patient, checks: Iterable[str] = tuple(CHECKS)) -> Iterator[Finding]:
    """Yield the findings of each check. Never raises: a check that fails is a finding.

    What keeps several checks from their work, such as a selection that cannot be read, is told once.
    """
    told: set[str] = set()
    for name in checks:
        try:
            yield from CHECKS[name](patient)
        except Exception as error:
            found = _found(name, error)
            if found.message not in told:
                told.add(found.message)
                yield found


def mend(patient: Patient) -> int:
    """Delete what broken-off installations and ended processes left; returns how many things. Raises StoreError."""
    found = len(installed.left_behind(patient))
    if found:
        with patient.store.installing():
            patient.store.forget_ended_uses()
    return found


def _found(name: str, error: Exception) -> Finding:
    known = refusals.refusal(error) if isinstance(error, OSError) else error
    if isinstance(known, PacelineError):
        return Finding(name, Status.PROBLEM, known.message, known.help)
    return _failed(name, error)


def _failed(name: str, error: Exception) -> Finding:
    said = f"this check failed itself: {type(error).__name__}: {error}"
    return Finding(name, Status.PROBLEM, said, "report it, with this line")
