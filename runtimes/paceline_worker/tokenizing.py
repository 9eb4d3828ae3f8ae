"""Long texts become tokens on a thread of their own, so that the streams of others go on meanwhile.

Tokenizing only reads a vocabulary. llama.cpp's `llama_vocab::impl::tokenize` is const and keeps what it works on to the
call, and Hugging Face's `Tokenizer.encode_batch` borrows the tokenizer immutably and lets go of Python's lock; so a
short text may be tokenized on the engine's thread at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Made = TypeVar("_Made")

_SHORT = 16 * 1024
"""Characters, or tokens, that the engine's thread sees to itself. MLX's tokenizer took 0.02 s for as much on one core,
about as long as a step of a small model."""


def is_long(text: Sized) -> bool:
    """Whether a text, or the tokens of one, takes longer than others should wait."""
    return len(text) > _SHORT


class Tokenizing:
    """The thread for long texts, which takes one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "tokenizing")

    def submit(self, work: Callable[[], _Made]) -> Future[_Made]:
        """Have `work`, which reads a vocabulary, done there."""
        return self._thread.submit(work)

    def settle(self) -> None:
        """Wait until no vocabulary is read any more; nobody can stop what has begun, wanted or not."""
        self.submit(lambda: None).result()
