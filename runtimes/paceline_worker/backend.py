"""What an engine side implements. All of it is called from one thread, the engine's.

A model's vocabulary alone is also read from others, those of its grammars and of long texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from paceline_worker.acceptance import Acceptance
from paceline_worker.output import Output
from paceline_worker.protocol import Fault
from paceline_worker.request import GenerateRequest

if TYPE_CHECKING:
    from concurrent.futures import Future

    from paceline_worker.decoding import Prompt
    from paceline_worker.embedding import Embedding
    from paceline_worker.grammar import Matcher


@dataclass(frozen=True)
class Preparation:
    """What a generation needs and takes long to make, each part on a thread of its own; None: it needs no such part."""

    prompt: Future[Prompt] | None = None
    grammar: Future[Matcher] | None = None

    @property
    def parts(self) -> list[Future[Any]]:
        return [part for part in (self.prompt, self.grammar) if part is not None]


@dataclass
class Generation:
    """One running generation. The backend adds its own state in a subclass."""

    request: GenerateRequest
    output: Output
    prompt_tokens: int
    cached_tokens: int = 0
    prompt_done: int = 0
    """Prompt tokens whose state is there; the output begins when it reaches `prompt_tokens`."""
    acceptance: Acceptance | None = None
    draft_skipped: str | None = None
    context_dropped: int = 0
    """Tokens that had to go because the context was full: of the prompt, and later."""
    fault: Fault | None = None
    """Why it cannot go on, though the engine can."""


@dataclass(frozen=True)
class LoadRequest:
    path: str
    context_length: int | None
    threads: int | None
    options: Mapping[str, Any]
    """The engine's own; `paceline_worker.options` reads them."""


class Backend(ABC):
    """An engine with at most one main and one draft model."""

    engine: str
    version: str
    features: tuple[str, ...]
    load_options: tuple[str, ...] = ()
    """The options that a load of a main model may have."""
    slots: int = 1
    """How many generations `step` can advance together."""

    @abstractmethod
    def devices(self) -> list[dict[str, Any]]:
        """Name, kind (`cpu`, `gpu`) and memory in bytes (or None) of every device the engine sees."""

    @abstractmethod
    def load(self, role: str, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        """Load the `main` or `draft` model, replacing the one there; returns the protocol's result without times."""

    @abstractmethod
    def unload(self, role: str) -> None:
        """Forget a model. Unloading the main model unloads the draft too."""

    @abstractmethod
    def prepare(self, request: GenerateRequest) -> Preparation:
        """What `open` needs and takes long to make, on other threads: the request's grammar, and the tokens of a long
        prompt.

        Whoever waits for it may give up. Nothing is loaded or unloaded while it is waited for.
        """

    @abstractmethod
    def open(self, request: GenerateRequest, grammar: Matcher | None, prompt: Prompt | None) -> Generation:
        """Begin a generation: tokenize, check that it fits, reuse what the cache holds. Computes nothing yet.

        `grammar`, `prompt`: what `prepare` made.
        """

    @abstractmethod
    def step(self, generations: Sequence[Generation]) -> None:
        """Advance each by one chunk of its prompt or one decode step, pushing what is committed to its output."""

    @abstractmethod
    def close(self, generation: Generation) -> None:
        """The generation ended or was cancelled."""

    @abstractmethod
    def tokenize(self, text: str, add_special: bool) -> Future[list[int]]:
        """Token ids of `text`; special tokens written out are recognized. A long text's are made on another thread.

        Nothing is loaded or unloaded while they are waited for.
        """

    @abstractmethod
    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The bytes of the tokens."""

    def open_embedding(self, inputs: Sequence[str]) -> Embedding:
        """Begin a request for one vector per input: tokenize, check that each can be read. Computes nothing yet."""
        raise Fault("unsupported", f"the {self.engine} worker makes no embeddings")

    def joins(self, embeddings: Sequence[Embedding]) -> bool:
        """Whether a further request may join these in their next batch."""
        return not embeddings

    def embed(self, embeddings: Sequence[Embedding]) -> None:
        """Compute one batch of the texts that these requests have left, those of the first ones first."""
        raise NotImplementedError
