"""Log probabilities as OpenAI shows them, in chat and in plain completions.

An answer has one entry for each token of the text it shows, so the bytes of its entries joined are the text. What
shows nothing, the end of the turn or a stop string, has none. A stop string can begin in the middle of a token; then
that token is the last entry.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from paceline.serving.generation import Piece, TokenLogprob


@dataclass(frozen=True)
class Entry:
    """A token of the shown text."""

    logprob: TokenLogprob
    offset: int
    """Where its text begins, in characters of the whole text."""


class ShownTokens:
    """Says which tokens a text shows, while it grows. Text may come later than its tokens, or never."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: deque[Entry] = deque()
        self._decoded = 0
        self._shown = 0

    def feed(self, pieces: Iterable[Piece]) -> list[Entry]:
        """The tokens whose text begins to show with these pieces."""
        for piece in pieces:
            if piece.logprob is not None:
                self._waiting.append(Entry(piece.logprob, self._decoded))
                self._decoded += len(self._decoder.decode(piece.logprob.bytes))
            self._shown += len(piece.text)
        entries = []
        while self._waiting and self._waiting[0].offset < self._shown:
            entries.append(self._waiting.popleft())
        return entries


def chat_logprobs(entries: Iterable[Entry]) -> dict[str, Any]:
    """`logprobs` of a choice of chat completions."""
    content = [{**_token(e.logprob), "top_logprobs": [_token(top) for top in e.logprob.top]} for e in entries]
    return {"content": content, "refusal": None}


def text_logprobs(entries: Iterable[Entry]) -> dict[str, Any]:
    """`logprobs` of a choice of plain completions."""
    shown = list(entries)
    return {
        "tokens": [_text(e.logprob) for e in shown],
        "token_logprobs": [e.logprob.logprob for e in shown],
        "top_logprobs": [_alternatives(e.logprob) for e in shown],
        "text_offset": [e.offset for e in shown],
    }


def _token(logprob: TokenLogprob) -> dict[str, Any]:
    return {"token": _text(logprob), "logprob": logprob.logprob, "bytes": list(logprob.bytes)}


def _alternatives(chosen: TokenLogprob) -> dict[str, float]:
    """By their text, the chosen token with them. Of several with the same text the likeliest counts."""
    alternatives: dict[str, float] = {}
    for token in (*chosen.top, chosen):
        alternatives.setdefault(_text(token), token.logprob)
    return alternatives


def _text(logprob: TokenLogprob) -> str:
    return logprob.bytes.decode("utf-8", "replace")
