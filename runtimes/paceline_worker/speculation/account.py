"""What speculation may lose.

Estimates can be wrong, so every loss is paid from an account (conservative bandits, Wu et al. 2016). Its unit is the
time that plain decoding takes for a token, with as many sequences as there are, so that a wrong draft of eight
sequences costs eight times what it costs one. It starts with `WARM_UP_CREDIT`, earns `ALLOWANCE` per committed token
and what drafting gained, up to `MOST_CREDIT`, and pays what it lost. Nothing is drafted on an empty account. So N
tokens take at most the plain time of (1 + ALLOWANCE) N + WARM_UP_CREDIT tokens and the overshoot of one draft, however
wrong the estimates of drafting are; looking again whether a hopeless draft has become good is paid from the same
account, at growing intervals.

What the draft model reads before its first draft is paid at once and comes back with the drafts that follow. So the
account may be overdrawn by what was read lately, up to `MOST_INVESTED`, and nothing is begun that it could not pay.

What is above `RESTING_CREDIT` fades with every committed token. So what was gained on one kind of requests does not pay
for long for losses on the next, and the same bound holds, with little more than RESTING_CREDIT for WARM_UP_CREDIT, over
any stretch of tokens that begins some hundred tokens after the last gain.
"""

from __future__ import annotations

import math

WARM_UP_CREDIT = 24.0
"""Plain decoding's time for so many tokens is what learning may cost in all."""
ALLOWANCE = 0.01
"""Part of plain decoding's time that may be lost for good, probing included."""
MOST_CREDIT = 24.0
"""Past gains pay for no more than so many tokens' worth of losses."""
RESTING_CREDIT = 3.0
"""What lasts of it: 256 tokens, with the allowance, lose about 2 % at most, and one draft's overshoot."""
FADING = 128.0
"""Committed tokens after which a third is left of what is above that."""
MOST_INVESTED = 14.0
"""So much more may be lost for what the draft model has to read, since it comes back with the drafts that follow."""
_MOST_SAVED = 10.0
"""The rest of it is for drafts that begin badly."""
LEAST_CREDIT = -16.0
"""Where the account stands after the worst draft: 1600 committed tokens later it is even again."""


class Account:
    def __init__(self) -> None:
        self.credit = WARM_UP_CREDIT
        """What may still be lost, in tokens of plain decoding."""
        self._invested = 0.0
        """What was paid for reading lately."""
        self._saved = 0.0
        """What the next reading may take beyond the credit: the allowance since the last one."""

    @property
    def empty(self) -> bool:
        return self.credit + self._invested <= 0

    def can_pay(self, price: float) -> bool:
        """Whether a try at this price is allowed. A price can be wrong: a full account tries it whatever it is."""
        return min(price, RESTING_CREDIT / 2) < self.credit + self._invested

    def can_read(self, price: float) -> bool:
        """Whether the draft model may read what costs so much, or the rest of it. What was read is lost if the account
        is empty before the first draft, so it is begun only where some is left."""
        left = self.credit + self._invested
        return price < left + self._saved and min(price, RESTING_CREDIT / 2) < left + self._invested

    def pay(self, tokens: float, plain_tokens: float, reading: float = 0.0) -> None:
        """A step that drafted committed `tokens` in the time that plain decoding takes for `plain_tokens`, of which
        `reading` went to what the draft model had missed."""
        self._invested = min(self._invested + reading, MOST_INVESTED)
        self._saved = max(self._saved - reading, 0.0)
        self._book(tokens, (1 + ALLOWANCE) * tokens - plain_tokens, reads=reading > 0.0)

    def earn(self, tokens: float) -> None:
        """A step without a draft committed so many tokens."""
        self._book(tokens, ALLOWANCE * tokens)

    def _book(self, committed: float, tokens: float, *, reads: bool = False) -> None:
        faded = math.exp(-committed / FADING)
        if not reads:
            self._invested *= faded
            self._saved = min(self._saved + ALLOWANCE * committed, _MOST_SAVED)
        if self.credit > RESTING_CREDIT:
            self.credit = RESTING_CREDIT + (self.credit - RESTING_CREDIT) * faded
        self.credit = min(max(self.credit + tokens, LEAST_CREDIT), MOST_CREDIT)
