"""A backend over a main model and at most one draft: all but loading them is done here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Generic

from paceline_worker.backend import Backend, Generation, LoadRequest, Preparation
from paceline_worker.decoding import check_tokens
from paceline_worker.primitives import ContextT, ModelT
from paceline_worker.protocol import Fault
from paceline_worker.tokenizing import Tokenizing, is_long

if TYPE_CHECKING:
    from paceline_worker.decoding import Prompt
    from paceline_worker.embedding import Embedder, Embedding
    from paceline_worker.grammar import Matcher
    from paceline_worker.request import GenerateRequest
    from paceline_worker.stepping import Stepper

DEFAULT_EMBEDDING_CONTEXT = 2048
_DEFAULT_CONTEXT = 4096
_DEFAULT_SLOTS = 8
_DEFAULT_POOL = 16384
"""Tokens of context, over all slots, up to which more than one slot is made unasked."""


class PairBackend(Backend, Generic[ContextT, ModelT]):
    """An engine whose contexts hold several sequences side by side."""

    def __init__(self) -> None:
        self.slots = 1
        self._pair: Stepper[ContextT, ModelT] | None = None
        self._embedder: Embedder[ModelT] | None = None
        """What is loaded in place of a pair."""
        self._tokenizing = Tokenizing()

    @abstractmethod
    def load_main(self, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        """Load a main model in place of the one there, and set `_pair`, or `_embedder`, and `slots`.

        Returns the protocol's result.
        """

    @abstractmethod
    def load_draft(
        self, pair: Stepper[ContextT, ModelT], request: LoadRequest, progress: Callable[[float], None]
    ) -> dict[str, Any]:
        """Load a draft for `pair` in place of the one there; returns the protocol's result."""

    def load(self, role: str, request: LoadRequest, progress: Callable[[float], None]) -> dict[str, Any]:
        if role == "main":
            return self.load_main(request, progress)
        if self._pair is None and self._embedder is None:
            raise Fault("not_loaded", "a draft is loaded after its main model")
        return self.load_draft(self.loaded(), request, progress)

    def unload(self, role: str) -> None:
        if self._pair is not None and role == "draft":
            self._pair.drop_draft()
        elif self._pair is not None:
            self._tokenizing.settle()
            self._pair.close()
            self._pair = None
        elif self._embedder is not None and role == "main":
            self._tokenizing.settle()
            self._embedder.close()
            self._embedder = None

    def prepare(self, request: GenerateRequest) -> Preparation:
        pair = self.loaded()
        prompt = self._tokenizing.submit(partial(pair.fit, request)) if is_long(request.prompt) else None
        return Preparation(prompt, pair.prepare(request))

    def open(self, request: GenerateRequest, grammar: Matcher | None, prompt: Prompt | None) -> Generation:
        return self.loaded().open(request, grammar, prompt)

    def step(self, generations: Sequence[Generation]) -> None:
        self.loaded().step(generations)

    def close(self, generation: Generation) -> None:
        self.loaded().finish(generation)

    def tokenize(self, text: str, add_special: bool) -> Future[list[int]]:
        work = partial(self.vocabulary().tokenize, text, add_special=add_special)
        if is_long(text):
            return self._tokenizing.submit(work)
        done: Future[list[int]] = Future()
        done.set_result(work())
        return done

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        model = self.vocabulary()
        check_tokens(tokens, model.n_vocab, "tokens")
        return b"".join(model.spell(token, special=True) for token in tokens)

    def open_embedding(self, inputs: Sequence[str]) -> Embedding:
        if self._embedder is None:
            self.loaded()
            raise Fault("unsupported", "the loaded model generates text; load an embedding model")
        return self._embedder.open(inputs)

    def joins(self, embeddings: Sequence[Embedding]) -> bool:
        return self._embedder is None or self._embedder.joins(embeddings)

    def embed(self, embeddings: Sequence[Embedding]) -> None:
        assert self._embedder is not None
        self._embedder.step(embeddings)

    def loaded(self) -> Stepper[ContextT, ModelT]:
        """The models that generate. Raises Fault when there are none."""
        if self._embedder is not None:
            raise Fault("unsupported", "the loaded model makes embeddings and generates no text")
        if self._pair is None:
            raise Fault("not_loaded", "no model is loaded")
        return self._pair

    def vocabulary(self) -> ModelT:
        """The model whose tokens are spoken of. Raises Fault when none is loaded."""
        return self.loaded().main.model if self._embedder is None else self._embedder.model


def sizes(request: LoadRequest, trained: int | None, parallel: int | None) -> tuple[int, int]:
    """How long each context of a main model is, and how many there are: what was asked for, or what suits most."""
    context_length = request.context_length or min(trained or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
    return context_length, parallel or max(1, min(_DEFAULT_SLOTS, _DEFAULT_POOL // context_length))


def loaded_result(model: ModelT, context_length: int, slots: int, memory: dict[str, int]) -> dict[str, Any]:
    """The result of a load, in the protocol's words."""
    return {"context_length": context_length, "vocabulary": model.n_vocab, "slots": slots, "memory": memory}
