"""What the shared step loop asks of an engine: batches, contexts, models, samplers, and who reads prompts elsewhere.

A new engine implements these over its own library; `stepping`, `drafting` and `lanes` do the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from paceline_worker.grammar import Matcher
    from paceline_worker.logprobs import Logits
    from paceline_worker.request import GenerateRequest


class Batch(Protocol):
    """Tokens of several lanes that are computed together."""

    @property
    def size(self) -> int: ...

    @property
    def left(self) -> int:
        """Tokens that still fit."""

    def clear(self) -> None: ...

    def add(self, lane: int, tokens: Sequence[int], start: int, /, *, outputs: int) -> int:
        """Append `tokens` of `lane` from position `start` on; returns the index of the first of the last `outputs`."""


class Context(Protocol):
    """The state of several sequences over one model, and the logits of the last batch."""

    @property
    def batch(self) -> Batch: ...

    @property
    def can_roll_back(self) -> bool:
        """Whether `keep` forgets any part. A recurrent state cannot: it is saved and restored as a whole."""

    @property
    def wants_even(self) -> bool:
        """Whether neighbouring lanes are computed in one pass only when they have equally many tokens in the batch and
        come in order, so that it pays to fill them up with tokens that are forgotten again."""

    def decode(self) -> None:
        """Compute the batch; its outputs can be read until the next one."""

    def logits(self, index: int, /) -> Logits:
        """Logits at one output of the last batch, shape (n_vocab,); not to be written to."""

    def likeliest_with_probability(self, index: int, /) -> tuple[int, float]:
        """The likeliest token at one output of the last batch, the first of equals, and its softmax probability."""

    def keep(self, lane: int, length: int, /) -> bool:
        """Forget a lane from position `length` on; False when its memory cannot forget that part."""

    def shift(self, lane: int, start: int, count: int, /) -> bool:
        """Forget `count` positions from `start` on and move what follows to their place; False when that is impossible
        and nothing was done."""

    def checkpoint(self, lane: int, /) -> Any:
        """What of a lane's state cannot be rolled back, as it is now."""

    def go_back(self, lane: int, length: int, state: Any, /) -> None:
        """Return to a checkpoint made when the lane held `length` tokens; the rest of the state is still to be taken
        back, by `keep`."""

    def forget(self, lane: int, /) -> None: ...

    def copy(self, source: int, target: int, /) -> None:
        """Give `target`, which is empty, all that `source` holds."""

    @property
    def is_changing(self) -> bool:
        """Whether copied or moved state waits for the next batch, and none can be saved or restored before."""

    @property
    def state_is_near(self) -> bool:
        """Whether lanes lie in the machine's own memory, where the state of a hundred tokens is saved and restored in
        the time that one takes to be read."""

    def state_size(self, lane: int, /) -> int:
        """Bytes of a lane's whole state."""

    def state(self, lane: int, /) -> Any:
        """A copy of a lane's whole state."""

    def restore(self, lane: int, state: Any, /) -> bool:
        """Give a lane, which is empty, such a state; False when that cannot be, and it stays empty."""

    def close(self) -> None: ...


class Model(Protocol):
    """A loaded model's vocabulary."""

    n_vocab: int
    bos: int | None

    @property
    def token_bytes(self) -> int | None:
        """The most bytes of a text that one token can stand for; None where nobody can say for certain."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; special tokens written out in `text` become their ids."""

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the output; control tokens add none."""

    def spell(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token, control tokens written out if `special`."""

    def ends(self, token: int) -> bool:
        """Whether the model ends its turn with this token."""

    def close(self) -> None: ...


ContextT = TypeVar("ContextT", bound=Context)
ModelT = TypeVar("ModelT", bound=Model)
ReadT = TypeVar("ReadT", covariant=True)
SampledT = TypeVar("SampledT", contravariant=True)


class Sampler(ABC, Generic[SampledT]):
    """One request's sampler. What it draws depends on the tokens before and on nothing else."""

    grammar: Matcher | None
    """What is asked here, and advanced by who commits the token."""

    @abstractmethod
    def sample(self, context: SampledT, index: int) -> int:
        """The main model's token at one output of the last batch. Positions are sampled in order.

        Raises Fault when the grammar allows none.
        """

    def close(self) -> None:
        """Free what the engine holds for it."""


class Samplers(ABC, Generic[SampledT]):
    """Makes the samplers of one model; keeps what is dear to make."""

    @abstractmethod
    def open(self, request: GenerateRequest, history: Sequence[int], grammar: Matcher | None) -> Sampler[SampledT]:
        """`history`: the prompt, which penalties and DRY look at."""

    def close(self) -> None:
        """Free what the engine holds for them."""


class Reader(Protocol[ReadT]):
    """Reads long prompts apart from the context that decodes, few at a time."""

    def progress(self, lane: int) -> int | None:
        """How many tokens of the prompt of `lane` have their state; None if it is not under way."""

    def takes(self, tokens: Sequence[int], held: int) -> bool:
        """Whether a prompt of which the context that decodes holds `held` tokens should be read here, now or later."""

    def begin(self, lane: int, tokens: Sequence[int], held: int) -> bool:
        """Take a prompt on; False when it has to wait, or, if `takes` says no from now on, is to be read elsewhere."""

    def read(self, lane: int, tokens: Sequence[int], room: int, begin: Callable[[ReadT, int], None]) -> int | None:
        """Compute the next tokens, about `room`, of a prompt that is under way.

        Returns None until all were read and handed over, and then how many tokens the lane holds, none if that failed.
        Else `begin` is called before with the context and the index of the output of the last token.
        """

    def forget(self, lane: int) -> None:
        """The prompt of `lane`, if it is under way, is no longer wanted."""

    def close(self) -> None: ...
