"""Output that keeps to a grammar, on any engine: JSON schemas, regular expressions, Lark and GBNF, by llguidance.

A token is sampled from the request's full chain first and checked, in microseconds. Only when the grammar refuses it
are the allowed tokens computed, and the chain draws once more from these. With no truncation in the chain that is the
model's own distribution, renormalized over what is allowed. llguidance would force the tokenization it thinks
canonical where only one text can follow; it is told not to (`no_forcing`), since that would be another distribution.

A runtime whose packages lack llguidance has no grammars: `FEATURES` is empty there.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from paceline_worker.protocol import Fault
from paceline_worker.request import Grammar

TokenIds = np.ndarray[Any, np.dtype[np.int64]]

FEATURES: tuple[str, ...] = ("grammar",) if importlib.util.find_spec("llguidance") else ()
"""What a worker adds to its features."""

_LONGEST = 256 * 1024
"""Most characters of a grammar."""

_LONGEST_PART = 8 * 1024
"""Most characters of a regular expression, of one string of a schema, and of one line of a Lark or GBNF grammar. What
one regular expression costs grows with the square of its length: a pathological one of 16 KiB took 2 s and 130 MB."""

_KEPT = 16
"""Compiled grammars kept for further requests."""

_STACK = 256 * 1024 * 1024
"""Stack to compile on: llguidance follows chains of rules by recursion; with 8 MiB, 6000 rules ended the process."""

_PATIENCE_S = 5.0
"""How long compiling may hold up the grammars after it. It cannot be stopped, so none begins until it is over."""

_WHITESPACE = r"(\x20|\x0A{1,2}[\x20\x09]{0,20})"
"""JSON's, between two tokens where there is any, unless a schema's own `x-guidance` says otherwise: what llama.cpp's
`common/json-schema-to-grammar.cpp` allows. Weak models fill all that they may."""

_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


class Vocabulary(Protocol):
    """What grammars ask of a model's tokens."""

    n_vocab: int

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the output."""

    def ends(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""


class Grammars:
    """The grammars over one model's vocabulary, compiled on a thread of their own, one after the other.

    The first one reads the whole vocabulary: 0.04 s for 4,096 tokens and 1.7 s for 128,256 were seen on two cores. That
    is kept as long as the model. Close it before the model.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary: Vocabulary | None = vocabulary
        self._vocabulary_is_read = threading.Lock()
        self._words: _Words | None = None
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, Matcher] = OrderedDict()
        self._reading: threading.Thread | None = None

    def matcher(self, grammar: Grammar) -> Future[Matcher]:
        """A matcher at the grammar's beginning, at once if the grammar is known.

        Its failure is a Fault: `invalid_request` for what is no usable grammar, `overloaded` while one that took too
        long is still being compiled.
        """
        if (known := self._known(grammar)) is None:
            return self._thread.submit(self._made, grammar)
        done: Future[Matcher] = Future()
        done.set_result(known)
        return done

    def close(self) -> None:
        """Give up what is still to be compiled; the vocabulary is not read any more when this returns."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._vocabulary_is_read:
            self._vocabulary = None

    def _known(self, grammar: Grammar) -> Matcher | None:
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is None:
                return None
            self._compiled.move_to_end(grammar)
            return compiled.copy()

    def _made(self, grammar: Grammar) -> Matcher:
        if (known := self._known(grammar)) is not None:
            return known
        words = self._read_vocabulary()
        compiled = Matcher(self._compile(grammar, words.tokenizer), words.count, words.ending)
        with self._lock:
            self._compiled[grammar] = compiled
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return compiled.copy()

    def _read_vocabulary(self) -> _Words:
        with self._vocabulary_is_read:
            if self._vocabulary is None:
                raise Fault("cancelled", "the model was unloaded")
            if self._words is None:
                self._words = _Words(self._vocabulary)
            return self._words

    def _compile(self, grammar: Grammar, tokenizer: Any) -> Any:
        import llguidance

        if self._reading is not None and self._reading.is_alive():
            raise Fault("overloaded", "an earlier grammar still takes its time", help="send it again later")
        source, made = _lark(grammar), []
        limits = llguidance.LLParserLimits(verbose_errors=False)

        def work() -> None:
            made.append(llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits))

        self._reading = _on_a_deep_stack(work)
        self._reading.join(_PATIENCE_S)
        if not made:
            raise _invalid(f"it could not be compiled in {_PATIENCE_S:.0f} seconds")
        compiled = made[0]
        if not compiled.is_error():
            compiled.compute_bitmask()  # what can never begin shows here
        if compiled.is_error():
            raise _invalid(_reason(compiled))
        return compiled


class Matcher:
    """Where one output is in its grammar. Ask for every sampled token, advance by every emitted one."""

    def __init__(self, compiled: Any, n_vocab: int, ending: TokenIds) -> None:
        self._matcher = compiled
        self._n_vocab = n_vocab
        self._ending = ending
        self._endings = frozenset(ending.tolist())
        self.ended = False
        """Whether the output is over: the grammar ended, or nothing can follow."""

    def copy(self) -> Matcher:
        """Another one, at the same place."""
        return Matcher(self._matcher.deep_copy(), self._n_vocab, self._ending)

    def allows(self, token: int) -> bool:
        """Whether the token may come next; one that ends the turn may where the grammar may end."""
        if token in self._endings:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]) == 1)

    def allowed(self) -> TokenIds:
        """Every token that may come next, ascending; at least one.

        Raises Fault (`invalid_request`) when llguidance's limits end the search for them.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise _invalid("no token can follow here: " + _reason(self._matcher))
        tokens = np.flatnonzero(np.unpackbits(bits, count=self._n_vocab, bitorder="little"))
        if self._matcher.is_accepting():
            tokens = np.union1d(tokens, self._ending)
        if not len(tokens):
            raise _invalid("no token of this model's vocabulary can follow here")
        return tokens

    def advance(self, token: int) -> None:
        """Go on past an emitted token, which `allows` or `allowed` named."""
        if token in self._endings:
            self.ended = True
            return
        if not self._matcher.consume_token(token):
            raise _invalid(_reason(self._matcher))
        self.ended = self._matcher.is_stopped()


class _Words:
    """A vocabulary in llguidance's form."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        import llguidance

        self.count = vocabulary.n_vocab
        tokens = range(self.count)
        self.ending: TokenIds = np.array([t for t in tokens if vocabulary.ends(t)], dtype=np.int64)
        """The tokens that end a turn, ascending; any of them may come where the grammar may end."""
        ending = set(self.ending.tolist())
        self.tokenizer = llguidance.LLTokenizer(
            _Spelling([b"" if t in ending else vocabulary.piece(t) for t in tokens])
        )


class _Spelling:
    """A vocabulary as llguidance reads it. The end token is one past the model's own, which the matcher judges."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, pieces: list[bytes]) -> None:
        self.tokens = [*pieces, b""]
        self.eos_token_id = len(pieces)

    def __call__(self, text: str | bytes) -> list[int]:
        """Tokenizing serves forced text, of which there is none."""
        return []


def _lark(grammar: Grammar) -> str:
    """The grammar in llguidance's own notation."""
    from llguidance import regex_to_lark

    kind, source = grammar.kind, grammar.source
    most = _LONGEST_PART if kind == "regex" else _LONGEST
    if len(source) > most:
        raise _invalid(f"it has {len(source)} characters; at most {most} are read")
    try:
        source.encode()
        if kind == "json_schema":
            return f"start: %json {_schema(source)}{_OPTIONS}"
        if kind == "regex":
            return f"start: /{regex_to_lark(source, '')}/{_OPTIONS}"
        if max(map(len, source.splitlines()), default=0) > _LONGEST_PART:
            raise _invalid(f"it has a line of more than {_LONGEST_PART} characters")
        return (_from_gbnf(source) if kind == "gbnf" else source) + _OPTIONS
    except UnicodeError:
        raise _invalid("it holds half a surrogate pair, which is no text") from None
    except RecursionError:
        raise _invalid("it is nested too deeply") from None


def _from_gbnf(source: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(source))
    except RecursionError:
        raise
    except Exception as error:  # the converter does not say which it raises
        raise _invalid(str(error)) from None


def _schema(source: str) -> str:
    schema = json.loads(source)
    if _longest(schema) > _LONGEST_PART:
        raise _invalid(f"it has a string of more than {_LONGEST_PART} characters")
    own = schema.get("x-guidance")
    if own is None or isinstance(own, dict):
        schema["x-guidance"] = {"whitespace_pattern": _WHITESPACE, **(own or {})}
    return json.dumps(schema)


def _longest(value: object) -> int:
    """Length of the longest string or key in a JSON value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return max((max(len(k), _longest(v)) for k, v in value.items()), default=0)
    return max(map(_longest, value), default=0) if isinstance(value, list) else 0


def _on_a_deep_stack(work: Callable[[], None]) -> threading.Thread:
    before = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=work, name="grammar", daemon=True)
        thread.start()
    finally:
        threading.stack_size(before)
    return thread


def _reason(matcher: Any) -> str:
    """What llguidance says, without its drawings of the text and of its own state."""
    first, *more = str(matcher.get_error()).split("\n")
    if first == "NoExtensionBias":
        return "nothing can match it"
    causes = [line for line in more if line.startswith("error: ")]
    return " ".join(part[:200] for part in (first, *causes))


def _invalid(reason: str) -> Fault:
    return Fault.invalid("grammar", f"the grammar cannot be used: {reason}")
