"""The vocabulary of a `tokenizer.json` (Hugging Face tokenizers): a text for every id, and the pairing facts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paceline.errors import ModelFileError
from paceline.formats.bounded_json import parse_json, read_bytes
from paceline.formats.digests import pairing_key, prefix_digests

FACTS_VERSION = 1
"""Part of every pairing key; raised when these facts change their meaning."""
MAX_BYTES = 1 << 28
MAX_ID = 1 << 22

HOLE = b"\xfe"
"""Stands for an id without a token. No UTF-8 text holds this byte, nor the one that stands for NUL."""
_NUL = b"\xff"

_MERGES = re.compile(rb'"merges"\s*+:\s*+(?=\[)')


def read_token_texts(path: Path) -> list[bytes]:
    """The text of every id of a tokenizer.json, added tokens included. Raises `ModelFileError`."""
    tokenizer = parse_json(without_merges(read_bytes(path, MAX_BYTES)), f"{path.parent.name}/{path.name}")
    model = tokenizer.get("model")
    by_id = _vocabulary(model.get("vocab") if isinstance(model, dict) else None)
    added = tokenizer.get("added_tokens")
    by_id.update(_added(added if isinstance(added, list) else []))
    if not by_id:
        raise ModelFileError(f"{path.parent.name}/{path.name} holds no vocabulary (model.vocab)")
    if max(by_id) >= MAX_ID or min(by_id) < 0:
        raise ModelFileError(f"{path.parent.name}/{path.name} has a token id outside 0 to {MAX_ID - 1}")
    texts = [HOLE] * (max(by_id) + 1)
    for token, text in zip(by_id, _encoded(list(by_id.values())), strict=True):
        texts[token] = text
    return texts


def without_merges(data: bytes) -> bytes:
    """A tokenizer.json with an empty list of merges where that list ends its object, as all known writers have it.

    They are half of the file or more, and no text of a token. What is left is JSON exactly if `data` is, but for the
    inside of that list; a file that was cut off stays one. Between the list's `[` and the `}` after it, outside of
    strings, a `:` would mean another key, and then nothing is taken out.
    """
    found = _MERGES.search(data)
    if found is None or data[found.start() - 1 : found.start()] == b"\\":
        return data
    start = at = found.end()
    quotes = 0
    brace, colon = data.find(b"}", at), data.find(b":", at)
    while brace >= 0:
        stop = brace if colon < 0 else min(brace, colon)
        quotes += _quotes(data[at:stop])
        at = stop
        if quotes % 2 == 0:
            end = len(data[start:stop].rstrip()) + start
            is_end = stop == brace and data[end - 1 : end] == b"]"
            return data[:start] + b"[]" + data[end:] if is_end else data
        if stop == brace:
            brace = data.find(b"}", stop + 1)
        else:
            colon = data.find(b":", stop + 1)
    return data


def _quotes(part: bytes) -> int:
    """How many quotation marks of a part of JSON begin or end a string."""
    if b"\\" in part:
        part = part.replace(b"\\\\", b"").replace(b'\\"', b"")
    return part.count(b'"')


def pairing_facts(folder: Path, bos: str | None, eos: str | None) -> dict[str, object]:
    """The facts the pair rules of MLX engines use, as JSON values, with their `key`.

    `problem` says why there is no usable vocabulary, else it is None: then `size`, `bos` and `eos` (texts, None
    where there is none) and `digests` hold.
    """
    facts: dict[str, object] = {"version": FACTS_VERSION, "bos": bos, "eos": eos}
    if (folder / "tokenizer.json").is_file():
        texts = read_token_texts(folder / "tokenizer.json")
        facts |= {"problem": None, "size": len(texts), "digests": prefix_digests(texts)}
    else:
        facts["problem"] = "the folder holds no tokenizer.json"
    facts["key"] = pairing_key(facts)
    return facts


def _vocabulary(vocabulary: object) -> dict[int, str]:
    """From a dict of text to id (BPE, WordPiece, WordLevel), or a list of [text, score] (Unigram)."""
    if isinstance(vocabulary, dict):
        return {token: text for text, token in vocabulary.items() if type(token) is int}
    if isinstance(vocabulary, list):
        return {i: entry[0] for i, entry in enumerate(vocabulary) if _is_scored(entry)}
    return {}


def _is_scored(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _added(entries: list[Any]) -> Iterable[tuple[int, str]]:
    for entry in entries:
        match entry:
            case {"content": str(text), "id": int(token)}:
                yield token, text


def _encoded(texts: list[str]) -> list[bytes]:
    """The texts as bytes without NUL; those with a NUL or half a surrogate pair cost a second look at all."""
    try:
        encoded = "\0".join(texts).encode().split(b"\0")
    except UnicodeEncodeError:
        encoded = []
    return encoded if len(encoded) == len(texts) else [_encode(text) for text in texts]


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").replace(b"\0", _NUL)
