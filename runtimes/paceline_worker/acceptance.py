"""What became of the tokens a draft proposed.

Drafting and verifying follow Leviathan et al. 2023 ("Fast Inference from Transformers via Speculative Decoding") in the
form llama.cpp uses: the main model samples every position with the request's whole sampler, and a drafted token counts
when it is the token sampled there. Every emitted token is the main model's own draw, so the output does not depend on
the draft.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Acceptance:
    """The acceptance record of one generation: drafted = accepted + rejected + ignored."""

    accepted: int = 0
    rejected: int = 0
    ignored: int = 0
    rounds: int = 0
    drafted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)

    def unverified(self, drafted: int) -> None:
        """Count a draft that was dropped before verification."""
        self.ignored += drafted

    def verified(self, drafted: int, accepted: int, *, ended: bool) -> None:
        """Count one verification; `ended` says that the output ended before a drafted token was refused."""
        if drafted == 0:
            return
        self.rounds += 1
        self.accepted += accepted
        if ended:
            self.ignored += drafted - accepted
        else:
            self.rejected += drafted - accepted
        compared = accepted if ended else drafted
        self._extend(self.drafted_per_position, compared)
        self._extend(self.accepted_per_position, accepted)

    def frame(self) -> dict[str, object]:
        """As the worker protocol has it."""
        width = max(len(self.drafted_per_position), len(self.accepted_per_position))
        padding = [0] * (width - len(self.accepted_per_position))
        return {
            "drafted": self.accepted + self.rejected + self.ignored,
            "accepted": self.accepted,
            "rejected": self.rejected,
            "ignored": self.ignored,
            "rounds": self.rounds,
            "drafted_per_position": self.drafted_per_position,
            "accepted_per_position": self.accepted_per_position + padding,
        }

    @staticmethod
    def _extend(counts: list[int], length: int) -> None:
        counts.extend([0] * (length - len(counts)))
        for i in range(length):
            counts[i] += 1
