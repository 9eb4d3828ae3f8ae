"""What speculation may lose.

Estimates can be wrong, so every loss is paid from an account (conservative bandits, Wu et al. 2016). Its unit is the
time that plain decoding takes for a token, with as many sequences as there are, so that a wrong draft of eight
sequences costs eight times what it costs one. It starts with `WARM_UP_CREDIT`, earns `ALLOWANCE` per committed token
and what drafting gained, up to `MOST_CREDIT`, and pays what it lost. Nothing is drafted on an empty account. So N
tokens take at most the plain time of (1 + ALLOWANCE) N + WARM_UP_CREDIT tokens and the overshoot of one draft, however
wrong the estimates of drafting are; looking again whether a hopeless draft has become good is paid from the same
account, at growing intervals.

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
LEAST_CREDIT = -16.0
"""Where the account stands after the worst draft: 1600 committed tokens later it is even again."""


class Account:
    def __init__(self) -> None:
        self.credit = WARM_UP_CREDIT
        """What may still be lost, in tokens of plain decoding."""

    @property
    def empty(self) -> bool:
        return self.credit <= 0

    def can_pay(self, price: float) -> bool:
        """Whether a try at this price is allowed. A price can be wrong: a full account tries it whatever it is."""
        return min(price, RESTING_CREDIT / 2) < self.credit

    def pay(self, tokens: float, plain_tokens: float) -> None:
        """A step that drafted committed `tokens` in the time that plain decoding takes for `plain_tokens`."""
        self._book(tokens, (1 + ALLOWANCE) * tokens - plain_tokens)

    def earn(self, tokens: float) -> None:
        """A step without a draft committed so many tokens."""
        self._book(tokens, ALLOWANCE * tokens)

    def _book(self, committed: float, tokens: float) -> None:
        if self.credit > RESTING_CREDIT:
            self.credit = RESTING_CREDIT + (self.credit - RESTING_CREDIT) * math.exp(-committed / FADING)
        self.credit = min(max(self.credit + tokens, LEAST_CREDIT), MOST_CREDIT)
