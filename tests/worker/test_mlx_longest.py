"""How much text one token of a Hugging Face tokenizer can stand for."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_mlx_worker.longest import token_bytes
from paceline_worker.byte_level import byte_level_table

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False}
BOTH = {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}
NFC = {"type": "NFC"}
ESCAPED = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
LETTERS = {*byte_level_table(), "Ġtokens", "<|im_start|>"}
BYTES = {*(f"<0x{byte:02X}>" for byte in range(256)), "▁▁"}


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "tokens", "byte_fallback", "most"),
    [
        (None, BYTE_LEVEL, LETTERS, False, 12),
        (None, BOTH, LETTERS, False, 12),
        (NFC, BOTH, LETTERS, False, 9 * 12),
        (ESCAPED, None, BYTES, True, 6),
        (None, {"type": "Metaspace", "replacement": "▁"}, BYTES, True, 6),
        # Bytes may be without a token.
        (ESCAPED, None, BYTES, False, None),
        (ESCAPED, None, BYTES - {"<0x0A>"}, True, None),
        (None, BYTE_LEVEL, LETTERS - {"Ċ"}, False, None),
        # Text is dropped or made shorter.
        ({"type": "Lowercase"}, BYTE_LEVEL, LETTERS, False, None),
        ({"type": "NFKC"}, BYTE_LEVEL, LETTERS, False, None),
        ({"type": "Replace", "pattern": {"String": "  "}, "content": " "}, BYTE_LEVEL, LETTERS, False, None),
        ({"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁▁"}, BYTE_LEVEL, LETTERS, False, None),
        (None, {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, BYTE_LEVEL]}, LETTERS, False, None),
        (None, {**BOTH, "pretokenizers": [{**SPLIT, "behavior": "Removed"}, BYTE_LEVEL]}, LETTERS, False, None),
    ],
)
def test_what_a_token_stands_for(normalizer, pre_tokenizer, tokens, byte_fallback, most):
    assert token_bytes(normalizer, pre_tokenizer, tokens, byte_fallback=byte_fallback) == most


def test_decomposing_a_character_makes_it_three_times_as_short_or_long_at_most():
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000:
            continue
        size, apart = (len(text.encode()) for text in (chr(code), unicodedata.normalize("NFD", chr(code))))
        assert size <= 3 * apart <= 9 * size


@given(st.text())
def test_composing_makes_no_text_nine_times_as_short(text):
    assert len(text.encode()) <= 9 * len(unicodedata.normalize("NFC", text).encode())
