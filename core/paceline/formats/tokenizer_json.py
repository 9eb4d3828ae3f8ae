"""The vocabulary of a `tokenizer.json` (Hugging Face tokenizers): a text for every id, and the pairing facts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from paceline.errors import ModelFileError
from paceline.formats.bounded_json import read_json
from paceline.formats.digests import pairing_key, prefix_digests

FACTS_VERSION = 1
"""Part of every pairing key; raised when these facts change their meaning."""
MAX_BYTES = 1 << 28
MAX_ID = 1 << 22

HOLE = b"\xfe"
"""Stands for an id without a token. No UTF-8 text holds this byte, nor the one that stands for NUL."""
_NUL = b"\xff"


def read_token_texts(path: Path) -> list[bytes]:
    """The text of every id of a tokenizer.json, added tokens included. Raises `ModelFileError`."""
    tokenizer = read_json(path, MAX_BYTES)
    model = tokenizer.get("model")
    by_id = _vocabulary(model.get("vocab") if isinstance(model, dict) else None)
    added = tokenizer.get("added_tokens")
    by_id.update(_added(added if isinstance(added, list) else []))
    if not by_id:
        raise ModelFileError(f"{path.parent.name}/{path.name} holds no vocabulary (model.vocab)")
    if max(by_id) >= MAX_ID or min(by_id) < 0:
        raise ModelFileError(f"{path.parent.name}/{path.name} has a token id outside 0 to {MAX_ID - 1}")
    encode = _encode if _needs_care(by_id.values()) else str.encode
    texts = [HOLE] * (max(by_id) + 1)
    for token, text in by_id.items():
        texts[token] = encode(text)
    return texts


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


def _needs_care(texts: Collection[str]) -> bool:
    """Whether a text holds a NUL or half a surrogate pair; both show in the joined texts, searched at C speed."""
    joined = "\0".join(texts)
    try:
        joined.encode()
    except UnicodeEncodeError:
        return True
    return joined.count("\0") >= len(texts)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").replace(b"\0", _NUL)
