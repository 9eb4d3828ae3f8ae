"""Who is measured: a server and what it does with a draft.

paceline                  no draft
paceline+auto             a draft, and Paceline decides how far it runs ahead
paceline+n3               always three drafted tokens (fewer where the output ends)
paceline+n8p0.75          up to eight, ending where the draft is less sure than 0.75
llama-server              no draft
llama-server+n8p0.75      --spec-type draft-simple --spec-draft-n-max 8 --spec-draft-p-min 0.75
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer
from paceline.errors import PacelineError, UsageError

PACELINE, PEER = "paceline", "llama-server"
PEER_GRID = tuple(f"{PEER}+n{n}p{p}" for n in (2, 3, 4, 8, 16) for p in ("0", "0.5", "0.75"))

_NAME = re.compile(rf"({PACELINE}|{PEER})(?:\+(auto|n(\d+)(?:p([\d.]+))?))?")


@dataclass(frozen=True)
class Models:
    """What a contender loads: files, and where they lie as a models folder of Paceline."""

    main: Path
    draft: Path
    main_id: str
    draft_id: str
    folder: Path


@dataclass(frozen=True)
class Contender:
    name: str
    server: str
    drafts: bool = False
    n: int | None = None
    """Most tokens to draft; None leaves it to the server."""
    p: float | None = None
    """The draft's own probability below which it stops; None: it never does."""

    @property
    def learns(self) -> bool:
        """Whether it has to find out first how far to draft."""
        return self.server == PACELINE and self.drafts and (self.n is None or self.p is not None)

    @contextmanager
    def running(self, models: Models, streams: int) -> Iterator[str]:
        """Its server, started over the models; the address."""
        if self.server == PACELINE:
            with paceline(models.folder) as url:
                yield url
            return
        flags = ["--spec-draft-n-max", str(self.n), "--spec-draft-p-min", str(self.p or 0)] if self.drafts else []
        draft = models.draft if self.drafts else None
        with peer.running(models.main, draft=draft, streams=streams, flags=flags) as url:
            yield url

    def body(self, models: Models) -> dict[str, Any]:
        """What its requests say beyond prompt and sampling."""
        if self.server == PEER:
            return {}
        body: dict[str, Any] = {"model": models.main_id}
        if self.drafts:
            body["draft_model"] = models.draft_id
        if self.n is not None:
            exact = {"numDraftTokensExact": self.n}
            classic = {"maxTokensToDraft": self.n, "minContinueDraftingProbability": self.p}
            body["speculative"] = exact if self.p is None else classic
        return body


def contender(name: str) -> Contender:
    """Raises UsageError for a name that means nothing."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise UsageError(
            f"no contender is called {name!r}", help="names look like paceline+auto or llama-server+n4p0.5"
        )
    server, draft, n, p = found.groups()
    if draft == "auto" and server == PEER:
        raise UsageError("llama-server does not decide how far to draft: say how many tokens, as in llama-server+n3")
    if n is not None and not 1 <= int(n) <= 1024:
        raise UsageError(f"{name}: between 1 and 1024 tokens can be drafted")
    return Contender(name, server, draft is not None, int(n) if n else None, float(p) if p else None)


@contextmanager
def paceline(models: Path | None = None, environment: dict[str, str] | None = None) -> Iterator[str]:
    """A running `paceline serve` that finds the models in a folder beside the user's own; its address."""
    command = [sys.executable, "-m", "paceline", "serve", "--port", "0"]
    env = {**os.environ, **(environment or {})}
    if models is not None:
        env["PACELINE_EXTRA_MODELS"] = str(models)
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+:\d+", line)
        if found is None:
            raise PacelineError(f"paceline serve did not start: {line.strip() or 'its messages are above'}")
        yield found[0]
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def contenders(names: Sequence[str]) -> tuple[Contender, ...]:
    """Each once, in the order given; `grid` means all of the peer's draft settings."""
    wanted = [each for name in names for each in (PEER_GRID if name == "grid" else (name,))]
    return tuple(contender(name) for name in dict.fromkeys(wanted))
