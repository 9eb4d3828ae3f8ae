"""What speculation may lose.

Estimates can be wrong, so every loss is paid from an account (conservative bandits, Wu et al. 2016): it starts with
`WARM_UP_CREDIT` plain steps, earns `ALLOWANCE` of a plain step per committed token and what drafting gained, up to
`MOST_CREDIT`, and pays what it lost. Nothing is drafted on an empty account. So N tokens take at most
(1 + ALLOWANCE) N + WARM_UP_CREDIT plain steps and the overshoot of one draft, however wrong the estimates of drafting
are; looking again whether a hopeless draft has become good is paid from the same account, at growing intervals.
"""

from __future__ import annotations

WARM_UP_CREDIT = 24.0
"""Plain decoding steps' worth of time that learning may cost in all."""
ALLOWANCE = 0.01
"""Part of plain decoding's time that may be lost for good, probing included."""
MOST_CREDIT = 32.0
"""Past gains pay for no more than this many plain steps' worth of losses."""
LEAST_CREDIT = -8.0
"""Where the account stands after the worst draft: 800 committed tokens later it is even again."""


class Account:
    def __init__(self) -> None:
        self.credit = WARM_UP_CREDIT
        """What may still be lost, in plain steps."""

    @property
    def empty(self) -> bool:
        return self.credit <= 0

    def can_pay(self, plain_steps: float) -> bool:
        """Whether a try at this price is allowed. A price can be wrong: a full account tries it whatever it is."""
        return min(plain_steps, MOST_CREDIT / 2) < self.credit

    def pay(self, tokens: float, plain_steps: float) -> None:
        """A step that drafted committed so many tokens per sequence and took the time of `plain_steps`."""
        self._book((1 + ALLOWANCE) * tokens - plain_steps)

    def earn(self, tokens: float) -> None:
        """A step without a draft committed so many tokens per sequence."""
        self._book(ALLOWANCE * tokens)

    def _book(self, plain_steps: float) -> None:
        self.credit = min(max(self.credit + plain_steps, LEAST_CREDIT), MOST_CREDIT)
