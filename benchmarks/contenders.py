"""Who is measured: a server and what it does with a draft.

paceline                  no draft
paceline+auto             a draft, and Paceline decides how far it runs ahead
paceline+n3               always three drafted tokens (fewer where the output ends)
paceline+n8p0.75          up to eight, ending where the draft is less sure than 0.75
llama-server              no draft
llama-server+n8p0.75      --spec-type draft-simple --spec-draft-n-max 8 --spec-draft-p-min 0.75
mlx_lm.server             no draft
mlx_lm.server+n3          --draft-model --num-draft-tokens 3
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx_peer
import peer
from paceline.errors import PacelineError, UsageError

PACELINE, LLAMA_SERVER, MLX_SERVER = "paceline", "llama-server", "mlx_lm.server"

_LENGTHS = (2, 3, 4, 8, 16)
GRIDS = {
    LLAMA_SERVER: tuple(f"{LLAMA_SERVER}+n{n}p{p}" for n in _LENGTHS for p in ("0", "0.5", "0.75")),
    MLX_SERVER: tuple(f"{MLX_SERVER}+n{n}" for n in _LENGTHS),
}
"""Peer -> all its draft settings that are measured."""

_SAMPLING = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}
_SEED = 7
_CONTEXT = 2048
"""Of each stream of the peer, where nothing else is asked for: what the sample models were trained for."""

_NAME = re.compile(rf"({PACELINE}|{'|'.join(map(re.escape, GRIDS))})(?:\+(auto|n(\d+)(?:p([\d.]+))?))?")


def server_of(name: str) -> str:
    """Of a contender's name."""
    return name.partition("+")[0]


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

    @property
    def scouts(self) -> bool:
        """Whether it is measured before the rest of its peer's grid: settings that are the best one often."""
        return self.drafts and (self.n, self.p or 0.0) in {(2, 0.0), (3, 0.0), (4, 0.0), (8, 0.75)}

    def running(
        self, models: Models, streams: int, context: int | None = None, options: Sequence[str] = ()
    ) -> AbstractContextManager[str]:
        """Its server over the models; the address. With a `context` every stream has so many tokens on each server,
        otherwise Paceline has its own defaults. `options` are more of `paceline serve`."""
        draft = models.draft if self.drafts else None
        if self.server == PACELINE:
            limits = [] if context is None else ["--context-length", str(context), "--parallel", str(streams)]
            return paceline(models.folder, options=[*limits, *options])
        if self.server == MLX_SERVER:
            return mlx_peer.running(models.main, draft=draft, n=self.n)
        flags = ["--spec-draft-n-max", str(self.n), "--spec-draft-p-min", str(self.p or 0)] if self.drafts else []
        return peer.running(models.main, draft=draft, streams=streams, context=context or _CONTEXT, flags=flags)

    def body(self, models: Models) -> dict[str, Any]:
        """What its requests say beside prompt and temperature."""
        if self.server == MLX_SERVER:
            return dict(_SAMPLING)  # a seed would keep requests out of its batches
        body: dict[str, Any] = {**_SAMPLING, "seed": _SEED}
        if self.server != PACELINE:
            return body
        body["model"] = models.main_id
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
            f"no contender is called {name!r}",
            help="names look like paceline+auto, llama-server+n4p0.5 or mlx_lm.server+n3",
        )
    server, draft, n, p = found.groups()
    if draft == "auto" and server != PACELINE:
        raise UsageError(f"{server} does not decide how far to draft: say how many tokens, as in {server}+n3")
    if p is not None and server == MLX_SERVER:
        raise UsageError(f"{server} drafts so many tokens whatever their probability: {server}+n{n}")
    if n is not None and not 1 <= int(n) <= 1024:
        raise UsageError(f"{name}: between 1 and 1024 tokens can be drafted")
    return Contender(name, server, draft is not None, int(n) if n else None, float(p) if p else None)


def contenders(names: Sequence[str], peer: str = LLAMA_SERVER) -> tuple[Contender, ...]:
    """Each once, in the order given; `grid` means all of the peer's draft settings. Raises UsageError also for a server
    that is neither Paceline nor this peer."""
    wanted = [each for name in names for each in (GRIDS[peer] if name == "grid" else (name,))]
    field = tuple(contender(name) for name in dict.fromkeys(wanted))
    strange = next((c for c in field if c.server not in (PACELINE, peer)), None)
    if strange is not None:
        raise UsageError(f"{strange.name} is no contender here: the peer is {peer}")
    return field


@contextmanager
def paceline(
    models: Path | None = None, environment: dict[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[str]:
    """A running `paceline serve` that finds the models in a folder beside the user's own; its address."""
    command = [sys.executable, "-m", "paceline", "serve", "--port", "0", "--update", "off", *options]
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
