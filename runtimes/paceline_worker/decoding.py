"""One generation being decoded, on any engine: what a prompt becomes, and what verifying a proposal commits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from paceline_worker.acceptance import Acceptance
from paceline_worker.backend import Generation
from paceline_worker.output import Output
from paceline_worker.protocol import Fault
from paceline_worker.request import DraftKnobs, GenerateRequest
from paceline_worker.speculation import Controller, Stream
from paceline_worker.tokenizing import is_long
from paceline_worker.window import Overflow, Window

if TYPE_CHECKING:
    from paceline_worker.grammar import Matcher
    from paceline_worker.logprobs import Logits


class Vocabulary(Protocol):
    """What decoding asks of a model's tokens."""

    n_vocab: int
    bos: int | None

    @property
    def token_bytes(self) -> int | None:
        """The most bytes of a text that one token can stand for; None where nobody can say for certain."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the output."""

    def ends(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""


@dataclass
class Decoding(Generation):
    """A generation's tokens, and what is drafted for them. A backend adds its own state in a subclass."""

    vocabulary: Vocabulary = field(kw_only=True)
    lane: int = 0
    """Where its state is in the contexts of both models."""
    tokens: list[int] = field(kw_only=True)
    """Prompt and output, less what was dropped; all but the last are in the main model's cache while decoding."""
    stream: Stream = field(init=False)
    draft_vocabulary: int | None = None
    """Tokens the draft model knows; None when it takes no part (any more)."""
    window: Window | None = None
    """What to do when the context is full; None: the output ends before."""
    drafted: list[int] = field(default_factory=list)
    """What the draft model made in this step."""
    unread: Sequence[int] = ()
    """What the draft model is to read next."""
    grammar: Matcher | None = None
    """What the sampler asks; it is advanced by every token that is committed."""

    def invite(self, controller: Controller, *, draft_vocabulary: int | None) -> None:
        """Let the drafters that the request asks for take part, or note why one cannot.

        `draft_vocabulary` is the loaded draft model's, None when none is loaded.
        """
        knobs = self.request.draft or DraftKnobs(model=False)
        model, lookup = knobs.model, knobs.lookup
        if model:
            if draft_vocabulary is None:
                self.draft_skipped = "no draft model is loaded"
            elif max(self.tokens) >= draft_vocabulary:
                self.draft_skipped = "the prompt holds tokens that the draft's smaller vocabulary lacks"
            model = self.draft_skipped is None
        self.draft_vocabulary = draft_vocabulary if model else None
        self.acceptance = Acceptance() if model or lookup else None
        self.stream = controller.open(knobs, self.tokens, model=model, lookup=lookup)

    @property
    def room(self) -> int:
        """How many drafted tokens this step could use: it commits one token more than it drafts."""
        room = self.output.left - 1
        if self.window is not None:
            # What is dropped, and when, must not depend on drafts.
            room = min(room, self.window.size - len(self.tokens))
        return max(0, room) if self.stream.drafts else 0

    @property
    def overflows(self) -> bool:
        """Whether the context has no room for the last token."""
        return self.window is not None and len(self.tokens) > self.window.size

    def roll(self) -> None:
        """Drop what the window says."""
        assert self.window is not None
        del self.tokens[self.window.keep : self.window.keep + self.window.step]
        self.context_dropped += self.window.step

    def commit(self, token: int, *, drafted: bool, logprobs: dict[str, object] | None = None) -> bool:
        """Append one token of the main model's choice. True when the output is over."""
        if self.grammar is not None:
            self.grammar.advance(token)
        self.tokens.append(token)
        self.stream.extend(token)
        if self.draft_vocabulary is not None and token >= self.draft_vocabulary:
            self.leave_draft("the output holds a token that the draft's smaller vocabulary lacks")
        ends_turn = self.vocabulary.ends(token) and (self.grammar is not None or not self.request.ignore_eos)
        return self.output.push(
            token,
            b"" if ends_turn else self.vocabulary.piece(token),
            drafted=drafted,
            end=ends_turn or (self.grammar is not None and self.grammar.ended),
            logprobs=logprobs,
        )

    def verify(
        self,
        proposal: Sequence[int],
        sample: Callable[[int], int],
        logits: Callable[[int], Logits],
        *,
        looked_up: bool,
    ) -> tuple[list[int], int]:
        """Commit what the main model says, as far as the proposal agrees, and one token more.

        `sample` gives the main model's token after the first so many tokens of the proposal; it is called in order and
        no further than needed. `logits` gives what the model computed there, for a request that wants to know.
        `looked_up`: the proposal is not the draft model's. Returns what was committed and how much of it had been
        proposed; where a grammar allows nothing, `fault` says so and the commits end there.
        """
        base, accepted = len(self.tokens), 0
        for position in range(len(proposal) + 1):
            try:
                token = sample(position)
                agreed = position < len(proposal) and token == proposal[position]
                over = self.commit(token, drafted=agreed, logprobs=self._logprobs(token, position, logits))
            except Fault as fault:
                self.fault = fault
                break
            accepted += agreed
            if over or not agreed:
                break
        emitted = self.tokens[base:]
        if self.acceptance is not None:
            over = self.output.stop_reason is not None or self.fault is not None
            ended = over and accepted == len(emitted)
            self.acceptance.unverified(len(self.drafted) - (0 if looked_up else len(proposal)))
            self.acceptance.verified(len(proposal), accepted, ended=ended, looked_up=looked_up)
        return emitted, accepted

    def agreed(self, emitted: Sequence[int]) -> int:
        """How much of what the draft model computed in this step goes on being true, now that `emitted` is committed.

        Its state never holds the last committed token, from which it drafts next.
        """
        same = 0
        for drafted, token in zip(self.drafted, emitted[:-1], strict=False):
            if drafted != token:
                break
            same += 1
        return same

    def begin(self, sample: Callable[[int], int], logits: Callable[[int], Logits]) -> None:
        """Commit the token that follows the prompt."""
        self.verify((), sample, logits, looked_up=True)

    def leave_draft(self, reason: str, *, lookup: bool = False) -> None:
        """Go on without the draft model, and if `lookup` without prompt lookup too."""
        self.draft_vocabulary = None
        self.stream.leave(lookup=lookup)
        self.draft_skipped = reason

    def _logprobs(self, token: int, position: int, logits: Callable[[int], Logits]) -> dict[str, object] | None:
        if self.request.logprobs is None:
            return None
        from paceline_worker.logprobs import logprobs

        return logprobs(logits(position), token, self.request.logprobs, self.vocabulary.piece)


class Prompt(NamedTuple):
    """What becomes of a request's prompt."""

    tokens: list[int]
    output: Output
    """The output that may follow."""
    window: Window | None = None
    """What the output may roll on; None: it ends where the context does."""
    dropped: int = 0
    """How many tokens of the prompt had to go."""


def read_prompt(request: GenerateRequest, vocabulary: Vocabulary, context_length: int) -> tuple[list[int], Output]:
    """The tokens of the request's prompt, checked, and the output that may follow them until the context is full."""
    if request.context_overflow is not Overflow.STOP_AT_LIMIT:
        raise Fault.invalid("context_overflow", f"this worker knows no context_overflow but {Overflow.STOP_AT_LIMIT}")
    if (least := _least_tokens(request.prompt, vocabulary)) >= context_length:
        raise _exceeded(least, context_length, "at least ")
    tokens = _prompt_tokens(request, vocabulary)
    room = context_length - len(tokens)
    if room < 1:
        raise _exceeded(len(tokens), context_length)
    return tokens, Output(max_tokens=request.max_tokens, context_room=room, stop=request.stop)


def fit_prompt(request: GenerateRequest, vocabulary: Vocabulary, context_length: int) -> Prompt:
    """As `read_prompt`, with any `context_overflow`."""
    if request.context_overflow is Overflow.STOP_AT_LIMIT:
        return Prompt(*read_prompt(request, vocabulary, context_length))
    tokens = _prompt_tokens(request, vocabulary)
    keep = request.context_keep
    if isinstance(keep, str):
        keep = len(vocabulary.tokenize(keep, add_special=request.add_special))
    keep = max(keep, int(tokens[0] == vocabulary.bos))
    window = Window.of(request.context_overflow, context_length, keep)
    assert window is not None
    if context_length < 2:
        raise Fault(
            "context_exceeded",
            f"a context of {context_length} has no room for a token and the one that follows it",
            prompt_tokens=len(tokens),
            context_length=context_length,
        )
    excess = window.excess(len(tokens), request.max_tokens)
    del tokens[window.keep : window.keep + excess]
    output = Output(max_tokens=request.max_tokens, context_room=sys.maxsize, stop=request.stop)
    return Prompt(tokens, output, window, excess)


def _least_tokens(prompt: str | tuple[int, ...], vocabulary: Vocabulary) -> int:
    """How many tokens a long text has at least, told from its length alone; 0 where that says nothing."""
    if not isinstance(prompt, str) or not is_long(prompt) or not (most := vocabulary.token_bytes):
        return 0
    return -(-len(prompt.encode(errors="replace")) // most)


def _exceeded(tokens: int, context_length: int, how_sure: str = "") -> Fault:
    return Fault(
        "context_exceeded",
        f"the prompt has {how_sure}{tokens} tokens; the context of {context_length} has no room for an answer",
        prompt_tokens=tokens,
        context_length=context_length,
    )


def _prompt_tokens(request: GenerateRequest, vocabulary: Vocabulary) -> list[int]:
    if isinstance(request.prompt, str):
        tokens = vocabulary.tokenize(request.prompt, add_special=request.add_special)
        if len(tokens) > 1 and tokens[0] == tokens[1] == vocabulary.bos:
            del tokens[0]  # the template had written it already
    else:
        tokens = list(request.prompt)
        check_tokens(tokens, vocabulary.n_vocab, "prompt")
    if not tokens:
        raise Fault.invalid("prompt", "the prompt has no tokens")
    return tokens


def check_tokens(tokens: Sequence[int], n_vocab: int, param: str) -> None:
    """Refuse token ids outside the vocabulary."""
    for token in tokens:
        if not 0 <= token < n_vocab:
            raise Fault.invalid(param, f"token {token} is outside the vocabulary of {n_vocab}")
