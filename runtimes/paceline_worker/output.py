"""Committed tokens become text: UTF-8 across tokens, stop strings, limits, and which token came from the draft."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from enum import StrEnum


class StopReason(StrEnum):
    EOS_FOUND = "eosFound"
    STOP_STRING_FOUND = "stopStringFound"
    MAX_TOKENS = "maxPredictedTokensReached"
    CONTEXT_LENGTH = "contextLengthReached"
    USER_STOPPED = "userStopped"


class Output:
    """The output of one generation. Push committed tokens one by one; take the pieces once a step.

    Text that could still become a stop string, and bytes of an unfinished character, wait for a later token. When the
    output ends, what waited comes with the last piece; after a stop string nothing of it does.
    """

    def __init__(self, *, max_tokens: int | None, context_room: int, stop: Sequence[str]) -> None:
        self._left = context_room if max_tokens is None else min(max_tokens, context_room)
        self._at_limit = (
            StopReason.MAX_TOKENS
            if max_tokens is not None and max_tokens <= context_room
            else StopReason.CONTEXT_LENGTH
        )
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = StopStrings(stop)
        self._pieces: list[list[object]] = []
        self.count = 0
        self.stop_reason: StopReason | None = None
        self.stop_string: str | None = None

    @property
    def left(self) -> int:
        """Tokens that may still be pushed."""
        return 0 if self.stop_reason is not None else self._left

    def push(
        self, token: int, data: bytes, *, drafted: bool, end: bool, logprobs: dict[str, object] | None = None
    ) -> bool:
        """Add one token; `data` are its bytes, `end` says nothing follows it. True when the output is over."""
        self.count += 1
        self._left -= 1
        text = self._decoder.decode(data)
        shown, self.stop_string = self._stops.feed(text)
        if self.stop_string is not None:
            self.stop_reason = StopReason.STOP_STRING_FOUND
        elif end:
            self.stop_reason = StopReason.EOS_FOUND
        elif self._left == 0:
            self.stop_reason = self._at_limit
        if self.stop_reason in (StopReason.EOS_FOUND, self._at_limit):
            tail, self.stop_string = self._stops.feed(self._decoder.decode(b"", final=True))
            shown += tail if self.stop_string is not None else tail + self._stops.rest()
            if self.stop_string is not None:
                self.stop_reason = StopReason.STOP_STRING_FOUND
        self._pieces.append(_piece(token, shown, drafted, logprobs))
        return self.stop_reason is not None

    def take(self) -> list[list[object]]:
        """The pieces since the last call, as the worker protocol has them."""
        pieces, self._pieces = self._pieces, []
        return pieces


class StopStrings:
    """Finds the first stop string in a stream of text, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to show now, and the stop string if one appeared (what follows it is dropped)."""
        if not self._stops:
            return text, None
        buffer = self._held + text
        found = [(at, stop) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if found:
            at, stop = min(found, key=lambda match: (match[0], -len(match[1])))
            self._held = ""
            return buffer[:at], stop
        keep = max(self._overlap(buffer, stop) for stop in self._stops)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep], None

    def rest(self) -> str:
        """What was held back, once nothing more can follow."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that begins `stop`."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0


def _piece(token: int, text: str, drafted: bool, logprobs: dict[str, object] | None) -> list[object]:
    if logprobs is not None:
        return [token, text, drafted, logprobs]
    if drafted:
        return [token, text, True]
    return [token, text] if text else [token]
