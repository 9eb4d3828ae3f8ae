"""GPT-2's alphabet, in which byte-level vocabularies write each byte as one character."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1)
def byte_level_table() -> dict[str, int]:
    """From character to byte: printable Latin-1 bytes are themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
