"""The draft model's part of a step: it reads what is committed, and continues greedily what is worth its price.

What it computed for accepted tokens stays in its cache: no token is decoded twice on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic

from paceline_worker.passes import usual_seconds
from paceline_worker.primitives import ContextT, ModelT
from paceline_worker.speculation import READ_AT_ONCE

if TYPE_CHECKING:
    from paceline_worker.decoding import Decoding
    from paceline_worker.lanes import Lanes
    from paceline_worker.speculation import Round


class Drafter(Generic[ContextT, ModelT]):
    """A draft model beside a main model of `n_vocab` tokens. A sequence has the same lane in both."""

    def __init__(self, lanes: Lanes[ContextT, ModelT], n_vocab: int, context_length: int) -> None:
        self._lanes = lanes
        self._context_length = context_length
        self._n_vocab = n_vocab
        self.n_vocab = lanes.model.n_vocab

    def open(self, sequence: Decoding) -> None:
        """Reuse what is known of a prompt."""
        if _drafts(sequence):
            self._lanes.prepare(sequence.lane, sequence.tokens)

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
        while wanting := round_.wanting():
            if not rested:
                self._rest([sequences[seat] for seat in wanting])
                rested = True
            lanes.begin()
            counts = self._counts([sequences[seat] for seat in wanting])
            seats = {sequences[seat].lane: seat for seat in wanting}
            rows = {}
            for lane, wanted in sorted(lanes.evened(counts, self._context_length, usual_seconds).items()):
                count = counts.get(lane, 0)
                if count:
                    unread = sequences[seats[lane]].unread
                    last = count == len(unread)
                    row = lanes.add(lane, unread[:count], outputs=1 if last else 0)
                    if last:
                        rows[seats[lane]] = row
                if wanted > count:
                    lanes.fill(lane, wanted - count)
            lanes.decode()
            for seat in wanting:
                if seat not in rows:
                    round_.stop(seat, behind=True)  # it reads on in the next step
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
            if 1 < len(sequence.unread) <= min(READ_AT_ONCE, lanes.left):
                lanes.add(sequence.lane, sequence.unread[:-1], outputs=0)
                sequence.unread = sequence.unread[-1:]
        lanes.decode()
        for sequence in sequences:
            if len(sequence.unread) == 1:
                lanes.mark(sequence.lane)

    def _counts(self, sequences: Sequence[Decoding]) -> dict[int, int]:
        """How many tokens each lane reads now: all it has missed, or a chunk where it is far behind a long prompt."""
        counts = {}
        room = self._lanes.left - len(sequences)
        for sequence in sequences:
            count = counts[sequence.lane] = min(len(sequence.unread), READ_AT_ONCE, 1 + room)
            room -= count - 1
        return counts


def _drafts(sequence: Decoding) -> bool:
    return sequence.draft_vocabulary is not None
