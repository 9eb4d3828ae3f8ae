"""The draft model's part of a step: it reads what is committed, and continues greedily what is worth its price.

What it computed for accepted tokens stays in its cache: no token is decoded twice on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic

from paceline_worker.primitives import ContextT, ModelT

if TYPE_CHECKING:
    from paceline_worker.decoding import Decoding
    from paceline_worker.lanes import Lanes
    from paceline_worker.speculation import Round

_CHUNK = 128
"""Tokens that it reads in a step while it catches up: running generations wait no longer than these take."""


class Drafter(Generic[ContextT, ModelT]):
    """A draft model beside a main model of `n_vocab` tokens. A sequence has the same lane in both."""

    def __init__(self, lanes: Lanes[ContextT, ModelT], n_vocab: int) -> None:
        self._lanes = lanes
        self._n_vocab = n_vocab
        self.n_vocab = lanes.model.n_vocab

    def open(self, sequence: Decoding) -> None:
        """Reuse what is known of a prompt."""
        if _drafts(sequence):
            self._lanes.reuse(sequence.lane, sequence.tokens)

    def lag(self, sequence: Decoding) -> int:
        """A step begins: how many tokens it has yet to read; 0 if it takes no part."""
        if not _drafts(sequence):
            return 0
        sequence.unread = self._lanes.missing(sequence.lane, sequence.tokens)
        return len(sequence.unread)

    def run(self, round_: Round, sequences: Sequence[Decoding]) -> None:
        """Continue greedily every sequence that is worth it, all in one batch a token."""
        lanes = self._lanes
        rested = lanes.context.can_roll_back
        evened = not lanes.context.wants_even
        while wanting := round_.wanting():
            if not rested:
                self._rest([sequences[seat] for seat in wanting])
                rested = True
            if not evened:
                self._even([sequences[seat] for seat in wanting])
                evened = True
            lanes.begin()
            rows = {}
            for seat in wanting:
                sequence = sequences[seat]
                if self._catches_up(sequence):
                    round_.stop(seat)
                else:
                    rows[seat] = lanes.add(sequence.lane, sequence.unread, outputs=1)
            lanes.decode()
            for seat, row in rows.items():
                token, probability = lanes.context.likeliest_with_probability(row)
                if token >= self._n_vocab:
                    round_.stop(seat)
                    continue
                sequences[seat].drafted.append(token)
                sequences[seat].unread = [token]
                round_.offer(token, probability, seat)
                if lanes.model.ends(token):
                    round_.stop(seat)

    def settle(self, sequence: Decoding, emitted: Sequence[int]) -> None:
        """Take back what does not agree with what was `emitted` in this step."""
        if _drafts(sequence):
            base = len(sequence.tokens) - len(emitted)
            self._lanes.truncate(sequence.lane, base + sequence.agreed(emitted))

    def cut(self, sequence: Decoding, start: int, count: int) -> None:
        """The sequence is about to drop `count` tokens from `start` on."""
        if _drafts(sequence):
            self._lanes.cut(sequence.lane, start, count)

    def close(self) -> None:
        self._lanes.close()

    def _rest(self, sequences: Sequence[Decoding]) -> None:
        """Read what is committed but for the last token, to be able to go back to there."""
        lanes = self._lanes
        lanes.begin()
        for sequence in sequences:
            if 1 < len(sequence.unread) <= min(_CHUNK, lanes.left):
                lanes.add(sequence.lane, sequence.unread[:-1], outputs=0)
                sequence.unread = sequence.unread[-1:]
        lanes.decode()
        for sequence in sequences:
            if len(sequence.unread) == 1:
                lanes.mark(sequence.lane)

    def _even(self, sequences: Sequence[Decoding]) -> None:
        """Where one has two tokens to read, after all of its draft was right, let all read two: that is one pass."""
        if {len(s.unread) for s in sequences} == {1, 2}:
            for sequence in sequences:
                held = self._lanes.length(sequence.lane)
                if len(sequence.unread) == 1 and held > 0:
                    self._lanes.truncate(sequence.lane, held - 1)
                    sequence.unread = sequence.tokens[held - 1 :]

    def _catches_up(self, sequence: Decoding) -> bool:
        """Far behind, on a long prompt, it reads a chunk a step and the others go on. True while it does."""
        room = min(_CHUNK, self._lanes.left - self._lanes.count)
        if len(sequence.unread) <= room:
            return False
        if room > 0:
            self._lanes.add(sequence.lane, sequence.unread[:room], outputs=0)
        return True


def _drafts(sequence: Decoding) -> bool:
    return sequence.draft_vocabulary is not None
