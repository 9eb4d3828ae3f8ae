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
        self._searches = [_Search(stop) for stop in stops]
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to show now, and the stop string if one appeared (what follows it is dropped)."""
        if not self._searches:
            return text, None
        ends = [(search.feed(text), search.stop) for search in self._searches]
        found = [(end - len(stop), stop) for end, stop in ends if end is not None]
        buffer, held = self._held + text, len(self._held)
        if found:
            at, stop = min(found, key=lambda match: (match[0], -len(match[1])))
            self._held = ""
            return buffer[: held + at], stop
        shown = len(buffer) - max(search.matched for search in self._searches)
        self._held = buffer[shown:]
        return buffer[:shown], None

    def rest(self) -> str:
        """What was held back, once nothing more can follow."""
        held, self._held = self._held, ""
        return held


class _Search:
    """One stop string in a stream of text; each character is looked at about once, however long the stop string is
    (Knuth, Morris, Pratt 1977, "Fast Pattern Matching in Strings")."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        """How much of it the text so far ends with."""
        self._borders = [0, 0]
        """Of its first n characters: the length of the longest beginning that is their end as well."""

    def feed(self, text: str) -> int | None:
        """Where in `text` its first occurrence ends."""
        stop, matched = self.stop, self.matched
        if not matched and stop[0] not in text:
            return None
        for place, character in enumerate(text):
            while matched and stop[matched] != character:
                matched = self._border(matched)
            matched += stop[matched] == character
            if matched == len(stop):
                return place + 1
        self.matched = matched
        return None

    def _border(self, length: int) -> int:
        borders, stop = self._borders, self.stop
        while len(borders) <= length:
            border, last = borders[-1], stop[len(borders) - 1]
            while border and stop[border] != last:
                border = borders[border]
            borders.append(border + (stop[border] == last))
        return borders[length]


def _piece(token: int, text: str, drafted: bool, logprobs: dict[str, object] | None) -> list[object]:
    if logprobs is not None:
        return [token, text, drafted, logprobs]
    if drafted:
        return [token, text, True]
    return [token, text] if text else [token]
