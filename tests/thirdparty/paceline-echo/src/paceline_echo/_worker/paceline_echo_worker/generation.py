"""The engine proper: the main model repeats the prompt's last line, a draft guesses it ahead."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from paceline_echo_worker import faults
from paceline_echo_worker.model import END, Echo
from paceline_echo_worker.refusal import Refusal, number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Event

Piece = list[Any]


@dataclass
class Knobs:
    """How far the draft runs ahead."""

    max_tokens: int = 16
    min_tokens: int = 0
    min_probability: float = 0.75
    exact_tokens: int | None = None


class Generation:
    """One request on its way: `steps` makes the tokens, `result` says how it ended."""

    def __init__(self, main: Echo, draft: Echo | None, params: dict[str, Any]) -> None:
        self._main, self._draft, self._knobs = main, draft, _knobs(params)
        self._stop, self._max = _stop(params), number(params, "max_tokens", None, at_least=1)
        prompt = params.get("prompt")
        tokens = main.encode(prompt) if isinstance(prompt, str) else main.checked(prompt, "prompt")
        if len(tokens) >= main.context_length:
            raise Refusal.of(
                f"the prompt has {len(tokens)} tokens, the context {main.context_length}",
                "context_exceeded",
                prompt_tokens=len(tokens),
                context_length=main.context_length,
            )
        last_line = (main.decode(tokens).strip().splitlines() or [""])[-1]
        self._script = main.encode("\n".join([last_line] * main.repeat))
        self._forever = bool(params.get("ignore_eos"))
        self._prompt_tokens, self._made = len(tokens), 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._stop_reason: str | None = None
        self._stop_string: str | None = None
        self._ignored = self._rounds = 0
        self._verified: list[int] = []
        self._accepted: list[int] = []

    def steps(self, cancelled: Event, frames_out: BinaryIO) -> Iterator[list[Piece]]:
        """Yield the pieces of each decode step until the generation ends."""
        asked, step = self._main.faults, 0
        faults.strike(asked, "generate", frames_out)
        while self._stop_reason is None:
            step += 1
            faults.gate(asked, step, cancelled)
            if cancelled.is_set() and not faults.ignores_cancel(asked):
                if not self._made:
                    raise Refusal.of("cancelled before its first token", "cancelled")
                self._stop_reason = "userStopped"
                return
            before = self._made
            yield self._step()
            for made in range(before + 1, self._made + 1):
                faults.strike(asked, made, frames_out)

    def result(self) -> dict[str, Any]:
        took_part = self._knobs is not None and self._draft is not None
        missing = self._knobs is not None and self._draft is None
        return {
            "stop_reason": self._stop_reason,
            "stop_string": self._stop_string,
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": 0,
            "completion_tokens": self._made,
            "acceptance": self._record() if took_part else None,
            "draft_skipped": "no draft model is loaded" if missing else None,
        }

    def _record(self) -> dict[str, Any]:
        accepted, verified = sum(self._accepted), sum(self._verified)
        return {
            "drafted": verified + self._ignored,
            "accepted": accepted,
            "rejected": verified - accepted,
            "ignored": self._ignored,
            "rounds": self._rounds,
            "drafted_per_position": self._verified,
            "accepted_per_position": self._accepted,
        }

    def _step(self) -> list[Piece]:
        """One verification: the draft's tokens as long as the main model agrees, then one of its own."""
        proposed = self._propose()
        self._rounds += bool(proposed)
        pieces: list[Piece] = []
        for position, guess in enumerate(proposed):
            token = self._choose(self._made)
            pieces.append(self._emit(token, drafted=guess == token))
            _count(self._verified, position)
            if guess != token:
                for refused in range(position + 1, len(proposed)):  # sent along with it, so refused with it
                    _count(self._verified, refused)
                return pieces
            _count(self._accepted, position)
            if self._stop_reason is not None:
                self._ignored += len(proposed) - position - 1
                return pieces
        pieces.append(self._emit(self._choose(self._made), drafted=False))
        return pieces

    def _choose(self, position: int) -> int:
        """The main model's token at this position of the output."""
        if position < len(self._script):
            return self._script[position]
        return self._script[position % len(self._script)] if self._forever and self._script else END

    def _propose(self) -> list[int]:
        """The draft's run of tokens: right, but for every `wrong_every`-th position of the output."""
        draft, knobs = self._draft, self._knobs
        if draft is None or knobs is None:
            return []
        length = knobs.exact_tokens
        if length is None:
            length = knobs.max_tokens if draft.confidence >= knobs.min_probability else 0
        length = min(length, self._main.context_length - self._prompt_tokens - self._made - 1)
        proposed: list[int] = []
        while len(proposed) < length and END not in proposed[-1:]:
            position = self._made + len(proposed)
            token = self._choose(position)
            wrong = draft.wrong_every is not None and (position + 1) % draft.wrong_every == 0
            proposed.append(token % (self._main.size - 1) + 1 if wrong else token)
        if knobs.exact_tokens is None and len(proposed) < knobs.min_tokens:
            self._ignored += len(proposed)
            return []
        return proposed

    def _emit(self, token: int, *, drafted: bool) -> Piece:
        """Count the token and say what text it completes."""
        self._made += 1
        self._held += self._utf8.decode(self._main.bytes_of(token))
        found = min(((self._held.find(s), s) for s in self._stop if s in self._held), default=None)
        if found:
            text, self._held = self._held[: found[0]], ""
            self._stop_reason, self._stop_string = "stopStringFound", found[1]
        else:
            if token == END:
                self._stop_reason = "eosFound"
            elif self._made == self._max:
                self._stop_reason = "maxPredictedTokensReached"
            elif self._prompt_tokens + self._made >= self._main.context_length:
                self._stop_reason = "contextLengthReached"
            if self._stop_reason:
                text, self._held = self._held + self._utf8.decode(b"", final=True), ""
            else:
                keep = self._beginning_of_a_stop_string()
                text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return [token, text, True] if drafted else [token, text] if text else [token]

    def _beginning_of_a_stop_string(self) -> int:
        """How many of the last characters may become a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in sizes if any(s.startswith(self._held[-n:]) for s in self._stop)), 0)


def _knobs(params: dict[str, Any]) -> Knobs | None:
    asked = params.get("draft")
    if asked is None:
        return None
    try:
        knobs = Knobs(**asked)
        bad = next((k for k, v in vars(knobs).items() if v is not None and not 0 <= v <= 1e6), None)
    except TypeError as error:
        raise Refusal.of(f"`draft` makes no sense: {error}", "invalid_request", param="draft") from error
    if bad:
        raise Refusal.of(f"`draft.{bad}` is out of range", "invalid_request", param=f"draft.{bad}")
    return knobs


def _stop(params: dict[str, Any]) -> list[str]:
    stop = params.get("stop") or []
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise Refusal.of("`stop` is no array of strings", "invalid_request", param="stop")
    return stop


def _count(counts: list[int], position: int) -> None:
    counts.extend([0] * (position + 1 - len(counts)))
    counts[position] += 1
