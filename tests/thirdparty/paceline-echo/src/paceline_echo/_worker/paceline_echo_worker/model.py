"""A loaded model: its tokens, and what they mean."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, BinaryIO

from paceline_echo_worker import faults
from paceline_echo_worker.refusal import Refusal, number

END = 0  # then 256 tokens for the bytes, then the words of the vocabulary
FIRST_WORD = 257


class Echo:
    """A loaded model."""

    def __init__(self, data: dict[str, Any], params: dict[str, Any]) -> None:
        self._words: list[str] = data.get("vocabulary", [])
        self._ids = {word: FIRST_WORD + i for i, word in enumerate(self._words)}
        longest_first = sorted(self._words, key=len, reverse=True)
        self._next = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)
        self.size = FIRST_WORD + len(self._words)
        trained: int = data.get("context_length") or 4096
        self.context_length = min(number(params, "context_length", trained, at_least=1), trained)
        self.repeat: int = data.get("repeat", 1)
        self.wrong_every: int | None = data.get("wrong_every")
        self.confidence: float = data.get("confidence", 0.9)
        self.memory: dict[str, int] | None = data.get("memory")
        self.faults: list[faults.Fault] = list(data.get("faults", []))

    @classmethod
    def load(cls, params: dict[str, Any], frames_out: BinaryIO) -> Echo:
        path, options = params.get("path"), params.get("options") or {}
        if not isinstance(path, str):
            raise Refusal.of("`path` is no string", "invalid_request", param="path")
        if not isinstance(options, dict):
            raise Refusal.of("`options` is no object", "invalid_request", param="options")
        if unknown := next((name for name in options if name not in ("embedding", "faults", "queue")), None):
            raise Refusal.of(f"there is no option `{unknown}`", "invalid_request", param=f"options.{unknown}")
        try:
            data = json.loads(Path(path).read_bytes())
            model = cls(data, params)
            model.faults += [*faults.of_environment(), *options.get("faults", [])]
            faults.strike(model.faults, "load", frames_out)
        except (OSError, ValueError, TypeError, AttributeError, faults.Failure) as error:
            raise Refusal.of(f"{path} cannot be loaded: {error}", "load_failed") from error
        return model

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = []
        for match in self._next.finditer(text):
            word = self._ids.get(match[0])
            tokens += [word] if word is not None else [byte + 1 for byte in match[0].encode(errors="replace")]
        return tokens

    def bytes_of(self, token: int) -> bytes:
        if token >= FIRST_WORD:
            return self._words[token - FIRST_WORD].encode()
        return b"" if token == END else bytes([token - 1])

    def decode(self, tokens: list[int]) -> str:
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def logprobs_of(self, token: int, alternatives: int) -> dict[str, Any]:
        """Made-up log probabilities: between a half and nearly all for the token, half of what is left for the next."""
        left = 0.5 - token % 97 / 200
        logprob, top = math.log(1 - left), []
        for i in range(min(alternatives, self.size)):
            other = (token + i) % self.size
            top.append([other, math.log(1 - left) if i == 0 else math.log(left / 2**i), list(self.bytes_of(other))])
        return {"logprob": logprob, "bytes": list(self.bytes_of(token)), "top": top}

    def checked(self, tokens: Any, param: str) -> list[int]:
        if not isinstance(tokens, list) or not all(type(t) is int and 0 <= t < self.size for t in tokens):
            raise Refusal.of(f"`{param}` is no array of ids below {self.size}", "invalid_request", param=param)
        return tokens
