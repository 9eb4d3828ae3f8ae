"""What a server says of a file that it would send, without sending it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from paceline.packages.download import number_in, validator_of
from paceline.packages.watch import ENDED_BY_WATCH, Watch

if TYPE_CHECKING:
    from paceline import network

ANSWER_S = 10.0
"""So long is waited for it: nothing depends on it but a number."""


@dataclass(frozen=True)
class Head:
    size: int | None
    """Bytes."""
    validator: str | None
    """What names this version of the file: another one has another."""


def head_of(url: str, clients: network.Clients, answer_s: float = ANSWER_S) -> Head | None:
    """What the server of `url` says of the file; None where it says nothing within `answer_s`. Raises OfflineError."""
    client = clients()
    watch = Watch(client, answer_s)
    try:
        with watch:
            answer = client.head(url, headers={"Accept-Encoding": "identity"}, timeout=answer_s)
    except (*ENDED_BY_WATCH, httpx.InvalidURL):
        return None
    if answer.status_code != 200 or "content-encoding" in answer.headers:
        return None
    size = number_in(answer.headers.get("content-length"))
    return Head(size or None, validator_of(answer))
