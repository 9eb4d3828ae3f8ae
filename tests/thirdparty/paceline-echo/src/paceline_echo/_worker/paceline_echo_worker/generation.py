"""The engine proper: the main model repeats the prompt's last line, a draft guesses it ahead."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any, BinaryIO

from paceline_echo_worker import faults
from paceline_echo_worker.drafting import Record, guess, look_up
from paceline_echo_worker.model import END, Echo
from paceline_echo_worker.refusal import Refusal
from paceline_echo_worker.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from threading import Event

Piece = list[Any]


class Generation:
    """One request on its way: `steps` makes the tokens, `result` says how it ended."""

    def __init__(self, main: Echo, draft: Echo | None, params: dict[str, Any]) -> None:
        self._main, self._asked = main, Request.of(params)
        knobs = self._asked.knobs
        self._lookup = knobs is not None and knobs.lookup
        self._draft = draft if knobs is not None and knobs.model else None
        self._no_draft = knobs is not None and knobs.model and draft is None
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
        self._tokens, self._prompt_tokens, self._made = tokens, len(tokens), 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._stop_reason: str | None = None
        self._stop_string: str | None = None
        self._record = Record()

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
        return {
            "stop_reason": self._stop_reason,
            "stop_string": self._stop_string,
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": 0,
            "completion_tokens": self._made,
            "acceptance": self._record.frame() if self._draft is not None or self._lookup else None,
            "draft_skipped": "no draft model is loaded" if self._no_draft else None,
        }

    def _step(self) -> list[Piece]:
        """One verification: the guesses as long as the main model agrees, then a token of its own."""
        proposed, looked_up = self._propose()
        record = self._record
        record.rounds += bool(proposed)
        pieces: list[Piece] = []
        for position, guessed in enumerate(proposed):
            token = self._choose(self._made)
            pieces.append(self._emit(token, drafted=guessed == token))
            record.verify(position, right=guessed == token, looked_up=looked_up)
            if guessed != token:
                for refused in range(position + 1, len(proposed)):  # sent along with it, so refused with it
                    record.verify(refused, right=False, looked_up=looked_up)
                return pieces
            if self._stop_reason is not None:
                record.ignored += len(proposed) - position - 1
                return pieces
        pieces.append(self._emit(self._choose(self._made), drafted=False))
        return pieces

    def _choose(self, position: int) -> int:
        """The main model's token at this position of the output."""
        if position < len(self._script):
            return self._script[position]
        again = self._asked.ignore_eos and self._script
        return self._script[position % len(self._script)] if again else END

    def _propose(self) -> tuple[list[int], bool]:
        """A run of guesses, and whether prompt lookup made them; it does where no draft model is sure enough."""
        knobs = self._asked.knobs
        if knobs is None:
            return [], False
        room = self._main.context_length - self._prompt_tokens - self._made - 1
        length = min(knobs.max_tokens if knobs.exact_tokens is None else knobs.exact_tokens, room)
        sure = self._draft is not None and self._draft.confidence >= knobs.min_probability
        if self._draft is not None and (sure or knobs.exact_tokens is not None):
            proposed, looked_up = guess(self._draft, self._made, length, self._choose, self._main.size, END), False
        else:
            proposed, looked_up = look_up(self._tokens, length) if self._lookup else [], True
        if knobs.exact_tokens is None and len(proposed) < knobs.min_tokens:
            self._record.ignored += 0 if looked_up else len(proposed)
            return [], False
        self._record.lookup_drafted += len(proposed) if looked_up else 0
        return proposed, looked_up

    def _emit(self, token: int, *, drafted: bool) -> Piece:
        """Count the token and say what text it completes."""
        self._made += 1
        self._tokens.append(token)
        self._held += self._utf8.decode(self._main.bytes_of(token))
        found = min(((self._held.find(s), s) for s in self._asked.stop if s in self._held), default=None)
        if found:
            text, self._held = self._held[: found[0]], ""
            self._stop_reason, self._stop_string = "stopStringFound", found[1]
        else:
            if token == END:
                self._stop_reason = "eosFound"
            elif self._made == self._asked.max_tokens:
                self._stop_reason = "maxPredictedTokensReached"
            elif self._prompt_tokens + self._made >= self._main.context_length:
                self._stop_reason = "contextLengthReached"
            if self._stop_reason:
                text, self._held = self._held + self._utf8.decode(b"", final=True), ""
            else:
                keep = self._beginning_of_a_stop_string()
                text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if self._asked.logprobs is not None:
            return [token, text, drafted, self._main.logprobs_of(token, self._asked.logprobs)]
        return [token, text, True] if drafted else [token, text] if text else [token]

    def _beginning_of_a_stop_string(self) -> int:
        """How many of the last characters may become a stop string."""
        longest = max(map(len, self._asked.stop), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in sizes if any(s.startswith(self._held[-n:]) for s in self._asked.stop)), 0)
