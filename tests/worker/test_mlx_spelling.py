"""Tokens spelled as bytes, for the decoders that models' tokenizer.json files have."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline_mlx_worker.spelling import speller
from paceline_worker.protocol import Fault

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
UNDERSCORE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
SENTENCEPIECE = {"type": "Sequence", "decoders": [UNDERSCORE, {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP]}


@pytest.mark.parametrize(
    ("decoder", "token", "data"),
    [
        (BYTE_LEVEL, "Ġthe", b" the"),
        (BYTE_LEVEL, "Ċ", b"\n"),
        (BYTE_LEVEL, "Ã¤", "ä".encode()),
        (BYTE_LEVEL, "Ã", b"\xc3"),
        (BYTE_LEVEL, "Ń", b"\xad"),
        (BYTE_LEVEL, "<|im_end|>", b"<|im_end|>"),
        (BYTE_LEVEL, "two words", b"two words"),
        (BYTE_LEVEL, "日本", "日本".encode()),
        (SENTENCEPIECE, "▁the", b" the"),
        (SENTENCEPIECE, "▁▁", b"  "),
        (SENTENCEPIECE, "<0xE6>", b"\xe6"),
        (SENTENCEPIECE, "<0x0a>", b"\n"),
        (SENTENCEPIECE, "<0x0A>x", b"<0x0A>x"),
        (SENTENCEPIECE, "日", "日".encode()),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, "▁hi", b" hi"),
        ({"type": "Sequence", "decoders": [STRIP, {"type": "Fuse"}]}, "  a", b" a"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, BYTE_LEVEL]}, "Ġa", b" a"),
    ],
)
def test_spelling(decoder, token, data):
    assert speller(decoder)(token) == data


@given(st.binary(max_size=40))
def test_byte_level_spells_every_byte(data):
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    moved = [b for b in range(256) if b not in kept]
    written = "".join(chr(b) if b in kept else chr(256 + moved.index(b)) for b in data)
    assert speller(BYTE_LEVEL)(written) == data


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}]},
    ],
)
def test_a_decoder_that_does_not_spell_token_by_token_is_refused(decoder):
    with pytest.raises(Fault, match="decoder") as error:
        speller(decoder)
    assert error.value.data["kind"] == "load_failed"


def test_a_real_tokenizer_spells_all_bytes_and_text(shared):
    content = json.loads((shared / "models/mlx/paceline-coder-7m-fp16/tokenizer.json").read_text(encoding="utf-8"))
    spell = speller(content["decoder"])
    vocabulary = {spell(token) for token in content["model"]["vocab"]}
    assert {bytes([byte]) for byte in range(256)} <= vocabulary
    assert {b" return", b"def", b"):"} <= vocabulary
