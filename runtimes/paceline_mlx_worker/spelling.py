"""The bytes of each token, so that the bytes of an output's tokens joined are its text.

Decoding one token to text cannot give them: a character's UTF-8 bytes may lie in several tokens. They follow from the
decoder that tokenizer.json describes, whose steps Hugging Face's `tokenizers` documents. Steps that touch the whole
text (the space dropped at its very beginning) are no property of a token and left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from paceline_worker.byte_level import byte_level_table
from paceline_worker.protocol import Fault

Speller = Callable[[str], bytes]
"""From a token as the vocabulary writes it to its bytes."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def speller(decoder: Mapping[str, Any] | None) -> Speller:
    """How a tokenizer with this decoder spells; raises Fault for a decoder that does not spell token by token."""
    steps = list(_flatten(decoder))
    fused = False
    rewrites: list[Callable[[str], str]] = []
    byte_level = byte_tokens = False
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                byte_level = True
            case {"type": "ByteFallback"}:
                byte_tokens = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                rewrites.append(partial(_replace, old=old, new=new))
            case {"type": "Metaspace"}:
                rewrites.append(partial(_replace, old=str(step.get("replacement", "▁")), new=" "))
            case {"type": "Strip", "content": str(content), "start": int(start), "stop": int(stop)}:
                if not fused:
                    rewrites.append(partial(_strip, content=content, start=start, stop=stop))
            case _:
                raise Fault("load_failed", f"this worker cannot spell the tokens of a {_name(step)} decoder")

    def spell(token: str) -> bytes:
        if byte_tokens and (found := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(found[1])
        for rewrite in rewrites:
            token = rewrite(token)
        return _from_byte_level(token) if byte_level else token.encode("utf-8", errors="replace")

    return spell


def _flatten(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        raise Fault("load_failed", "the tokenizer names no decoder, so the text of its tokens is unknown")
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", ()) for step in _flatten(inner)]
    return [decoder]


def _name(step: Mapping[str, Any]) -> str:
    return f"{step.get('type')} ({step['pattern']})" if "pattern" in step else str(step.get("type"))


def _replace(text: str, old: str, new: str) -> str:
    return text.replace(old, new)


def _strip(text: str, content: str, start: int, stop: int) -> str:
    while start > 0 and text.startswith(content):
        text, start = text[len(content) :], start - 1
    while stop > 0 and text.endswith(content):
        text, stop = text[: -len(content)], stop - 1
    return text


def _from_byte_level(token: str) -> bytes:
    """Byte-level BPE writes each byte as one character; a token with any other character stands for itself."""
    table = byte_level_table()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode("utf-8", errors="replace")
