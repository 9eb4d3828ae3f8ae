"""How much text one token can stand for, as far as Hugging Face's `tokenizers` documents a tokenizer's steps.

That is certain where no step shortens or drops text, but for Unicode's composition, whose effect is bounded, and where
every byte that is no part of a longer token has one of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from paceline_worker.byte_level import byte_level_table

State = Mapping[str, Any]
"""A part of a tokenizer as tokenizer.json describes it."""

_COMPOSED = 9
"""How much shorter composing makes a text's UTF-8 at most: decomposing it makes it 3 times as short or long at most,
and what is composed decomposes to the same."""

_ISOLATED = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def token_bytes(
    normalizer: State | None, pre_tokenizer: State | None, tokens: Collection[str], *, byte_fallback: bool
) -> int | None:
    """The most bytes of a text that one token of a BPE vocabulary can stand for; None where that is not certain.

    `tokens`: all of them as the vocabulary writes them; `byte_fallback`: characters without a token become those of
    their bytes.
    """
    shorter = 1
    for step in _flatten(normalizer, "normalizers"):
        match step:
            case {"type": "NFC"}:
                shorter *= _COMPOSED
            case {"type": "Prepend"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                if len(new.encode()) < len(old.encode()):
                    return None
            case _:
                return None
    byte_level = False
    for step in _flatten(pre_tokenizer, "pretokenizers"):
        match step:
            case {"type": "ByteLevel"}:
                byte_level = True
            case {"type": "Split" | "Punctuation", "behavior": behavior} if behavior in _ISOLATED:
                pass
            case {"type": "Digits" | "Metaspace"}:
                pass
            case _:
                return None
    if byte_level:
        complete = all(character in tokens for character in byte_level_table())
    else:
        complete = byte_fallback and all(f"<0x{byte:02X}>" in tokens for byte in range(256))
    # As they are written, they are as long as what they stand for, or longer.
    return shorter * max(len(token.encode()) for token in tokens) if complete else None


def _flatten(state: State | None, inner: str) -> list[State]:
    if state is None:
        return []
    if state.get("type") == "Sequence":
        return [step for part in state.get(inner, ()) for step in _flatten(part, inner)]
    return [state]
