"""The servers of a sitting, and what one of them is asked in a cell.

A server lives as long as rounds want it with the same models, number of streams and repeat, so that its start and the
requests that do not count are paid once for many cells. Contenders take turns within each cell: what is compared was
measured within a minute. Servers that are not asked wait; were one to compute, it would count as others' work.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import psutil

from client import ask_all
from contenders import Contender, Models
from machine import OtherWork, wait_for_quiet
from prompts import CODE, KINDS, PROSE, REPETITIVE, chat_prompt
from report import Cell, Record


@dataclass(frozen=True)
class Asking:
    """How all cells of a file are asked."""

    prompts: int
    """In each cell; at least one for each stream."""
    max_tokens: int
    warm_up: int
    """Tokens that a new server generates before it counts."""
    learning: int
    """As many where Paceline learns how far to draft."""
    temperatures: list[float]


@dataclass(frozen=True)
class Quiet:
    """When others count as quiet, and what is done until they are."""

    noise: float
    """Cores that they may keep busy during a run."""
    patience_s: float
    """How long such quiet is waited for before each run."""
    retries: int
    """How often a run that they disturbed is done again."""


@dataclass(frozen=True)
class Life:
    """What a server was started for."""

    models: Models
    streams: int
    repeat: int

    def serves(self, contender: Contender, other: Life) -> bool:
        """Whether the contender's server of this life would be started alike for the other one."""
        alike = self.models.main == other.models.main and (self.streams, self.repeat) == (other.streams, other.repeat)
        return alike and (self.models.draft == other.models.draft or not contender.drafts)


class Servers:
    """The running servers, one for each contender at most; all end with the block."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._running: dict[str, tuple[Contender, _Server]] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for contender, _ in [*self._running.values()]:
            self.end(contender)

    def run(self, contender: Contender, cell: Cell, life: Life, quiet: Quiet) -> Record:
        """The contender's answers in a cell, by a new server as often as others disturb it: the least disturbed ones
        when patience ends."""
        attempts: list[Record] = []
        while not attempts or (attempts[-1].other_cores > quiet.noise and len(attempts) <= quiet.retries):
            if attempts:
                self.end(contender)  # it would answer the same prompts from what it remembers
            attempts.append(self._once(contender, cell, life, quiet))
        return min(attempts, key=lambda record: record.other_cores)

    def keep(self, field: Iterable[Contender], life: Life) -> None:
        """End every server that these contenders cannot use in this life."""
        wanted = {contender.name for contender in field}
        for contender, server in [*self._running.values()]:
            if contender.name not in wanted or not server.life.serves(contender, life):
                self.end(contender)

    def end(self, contender: Contender) -> None:
        """End the contender's server, if it runs."""
        if contender.name in self._running:
            self._running.pop(contender.name)[1].stack.close()

    def _once(self, contender: Contender, cell: Cell, life: Life, quiet: Quiet) -> Record:
        server = self._server(contender, life)
        body = {**contender.body(life.models), "max_tokens": self._asking.max_tokens, "temperature": cell.temperature}
        wait_for_quiet(quiet.noise, quiet.patience_s, server.processes)
        others = OtherWork(server.processes)
        run = asyncio.run(ask_all(server.url, prompts_of(cell, self._asking), body, cell.streams))
        return Record(cell, contender.name, life.repeat, run, others.cores())

    def _server(self, contender: Contender, life: Life) -> _Server:
        if contender.name in self._running and self._running[contender.name][1].life.serves(contender, life):
            return self._running[contender.name][1]
        self.end(contender)
        before = set(psutil.Process().children())
        with ExitStack() as stack:
            url = stack.enter_context(contender.running(life.models, life.streams))
            processes = [p for p in psutil.Process().children() if p not in before]
            self._warm_up(url, contender, life)
            server = _Server(life, url, processes, stack.pop_all())
        self._running[contender.name] = (contender, server)
        return server

    def _warm_up(self, url: str, contender: Contender, life: Life) -> None:
        """Ask as many at a time as in the cells, until so many tokens were generated; for what no cell asks."""
        wanted = self._asking.learning if contender.learns else self._asking.warm_up
        tokens = min(self._asking.max_tokens, math.ceil(wanted / life.streams))
        body = {**contender.body(life.models), "max_tokens": tokens, "temperature": 0.0}
        requests = unasked()
        while wanted > 0:
            prompts = [chat_prompt(text) for text in itertools.islice(requests, life.streams)]
            wanted -= max(1, asyncio.run(ask_all(url, prompts, body, life.streams)).tokens)


@dataclass(frozen=True)
class _Server:
    life: Life
    url: str
    processes: Sequence[psutil.Process]
    stack: ExitStack


def prompts_of(cell: Cell, asking: Asking) -> list[str]:
    """No two cells that one server may answer have one in common: it would not compute it again."""
    count = max(asking.prompts, cell.streams)
    place = asking.temperatures.index(cell.temperature)
    if KINDS[cell.kind] is CODE and cell.kind != "code":
        place += len(asking.temperatures)
    return [chat_prompt(text) for text in some(KINDS[cell.kind], count, first=place * count)]


def unasked() -> Iterator[str]:
    """Requests of all kinds that cells ask last of all, if ever; without end."""
    for again in itertools.count():
        for requests in zip(CODE[::-1], PROSE[::-1], REPETITIVE[::-1], strict=False):
            yield from (f"{text} ({again})" if again else text for text in requests)


def some(requests: Sequence[str], count: int, *, first: int) -> list[str]:
    """So many requests from the `first` on; when all are used up they come again, with a number, as other prompts."""
    rounds = [divmod(i, len(requests)) for i in range(first, first + count)]
    return [f"{requests[i]} ({again})" if again else requests[i] for again, i in rounds]
