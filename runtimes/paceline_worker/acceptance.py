"""What became of the tokens that the draft model, or prompt lookup, proposed.

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
    looked_up: int = 0
    """Tokens that prompt lookup proposed and the main model verified; they count in the sums, too."""
    looked_up_accepted: int = 0
    drafted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)

    def unverified(self, drafted: int) -> None:
        """Count a draft that was dropped before verification."""
        self.ignored += drafted

    def verified(self, drafted: int, accepted: int, *, ended: bool, looked_up: bool = False) -> None:
        """Count one verification.

        `ended` says that the output ended before a drafted token was refused, `looked_up` that prompt lookup proposed.
        """
        if drafted == 0:
            return
        self.rounds += 1
        if looked_up:
            self.looked_up += drafted
            self.looked_up_accepted += accepted
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
            "lookup": {"drafted": self.looked_up, "accepted": self.looked_up_accepted},
            "drafted_per_position": self.drafted_per_position,
            "accepted_per_position": self.accepted_per_position + padding,
        }

    @staticmethod
    def _extend(counts: list[int], length: int) -> None:
        counts.extend([0] * (length - len(counts)))
        for i in range(length):
            counts[i] += 1
