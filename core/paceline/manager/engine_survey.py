"""What an installed engine itself finds on this machine: its worker is started once and says which devices it sees."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from paceline.errors import PacelineError
from paceline.manager.installation import worker_of
from paceline.survey.answers import Answers

if TYPE_CHECKING:
    from pathlib import Path

    from paceline.engine import Engine
    from paceline.store import Store
    from paceline.survey import Survey
    from paceline.types import Runtime

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Seen:
    """The devices that a runtime's engine names, or why it named none."""

    runtime: str
    devices: tuple[str, ...] | None
    problem: str | None
    source: str


def ask_engine(
    runtime: Runtime,
    engine: Engine,
    store: Store,
    survey: Survey,
    cache: Path,
    *,
    refresh: bool = False,
    start: bool = True,
) -> Seen:
    """Ask the worker of `runtime`; what it said is remembered below `cache` for this runtime, driver and cards.

    Without `start` only what is remembered counts.

    Never raises PacelineError: a worker that does not start is the answer, and is not remembered.
    """
    problems: list[str] = []

    def ask() -> list[str] | None:
        from paceline.serving.smoke import smoke_test

        if not start:
            problems.append("it was not asked yet which devices it sees")
            return None
        try:
            devices = smoke_test(worker_of(runtime, engine), timeout_s=TIMEOUT_S).devices
        except PacelineError as error:
            problems.append(error.message)
            return None
        return [f"{d.name} ({d.description or d.kind})" for d in devices]

    found, since = Answers(cache, refresh=refresh).get(f"runtime {runtime.id}", _key(runtime, store, survey), ask)
    source = f"the runtime's worker{f', asked {since}' if since else ''}"
    if not isinstance(found, list):
        return Seen(runtime.id, None, problems[0] if problems else "its remembered answer is damaged", source)
    return Seen(runtime.id, tuple(map(str, found)), None, source)


def _key(runtime: Runtime, store: Store, survey: Survey) -> str:
    try:
        installed: Any = store.manifest(runtime).get("files_sha256")
    except PacelineError:
        installed = None
    cards = [asdict(gpu) for gpu in survey.gpus.value or ()]
    return f"{store.home} {installed} {survey.os_version.value} {survey.nvidia_driver.value} {cards}"
