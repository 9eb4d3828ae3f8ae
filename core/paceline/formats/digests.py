"""Compare two token lists by their digests, without the lists.

Drafts and main models may differ in how many tokens their vocabularies end with. So 129 digests are kept of each:
one of every prefix `texts[first:length]` for length from `size - MAX_SIZE_DIFFERENCE` to `size`. Two vocabularies
whose sizes differ by no more than that agree on all common tokens exactly if their digests at the smaller size do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_SIZE_DIFFERENCE = 128
"""llama.cpp's SPEC_VOCAB_MAX_SIZE_DIFFERENCE."""

_BYTES = 12
_CHARS = 16  # 12 bytes are 16 characters of base64, so one digest is a slice of the text


def prefix_digests(texts: Sequence[bytes], first: int = 0) -> str:
    """The 129 digests of `texts`, as one string of base64. No text may hold a NUL byte: it separates them."""
    import base64  # here, because engine plugins import this module when the host starts
    import hashlib

    size = len(texts)
    shortest = size - MAX_SIZE_DIFFERENCE
    digest = hashlib.blake2b(digest_size=_BYTES)
    if shortest > first:
        digest.update(b"\0".join(texts[first:shortest]) + b"\0")
    digests = [digest.digest()]
    for i in range(shortest, size):
        if i >= first:
            digest.update(texts[i] + b"\0")
        digests.append(digest.digest())
    return base64.b64encode(b"".join(digests)).decode("ascii")


def same_tokens(a: str, a_size: int, b: str, b_size: int) -> bool:
    """Whether two vocabularies agree on every token both have; their sizes differ by at most 128."""
    common = min(a_size, b_size)
    return _at(a, a_size, common) == _at(b, b_size, common)


def pairing_key(facts: Mapping[str, object]) -> str:
    """A digest of all pairing facts: models with equal keys are interchangeable to the pair rules."""
    import hashlib
    import json

    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _at(digests: str, size: int, length: int) -> str:
    i = length - (size - MAX_SIZE_DIFFERENCE)
    return digests[i * _CHARS : (i + 1) * _CHARS]
