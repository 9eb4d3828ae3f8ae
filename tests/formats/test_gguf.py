from __future__ import annotations

import os
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.errors import ModelFileError
from paceline.formats.gguf import MAX_KEPT_ARRAY, MAX_KEPT_STRING, GgufTensor, read_gguf

SMALL = {
    "general.architecture": "llama",
    "general.file_type": 1,
    "llama.context_length": (10, 2**40),
    "llama.rope.freq_base": 0.5,
    "llama.signed": -3,
    "flag": True,
    "numbers": [1, -2, 3],
    "languages": ["de", "日本"],
    "tokenizer.ggml.tokens": ["a", b"\xff\xfe", "", "né"],
}
TENSORS = [("token_embd.weight", (64, 4), 8), ("output_norm.weight", (64,), 0)]


def test_reads_every_kind_of_value(tmp_path, write_gguf):
    metadata = read_gguf(write_gguf(tmp_path / "m.gguf", SMALL, TENSORS))
    assert metadata.version == 3
    assert metadata.values == {
        "general.architecture": "llama",
        "general.file_type": 1,
        "llama.context_length": 2**40,
        "llama.rope.freq_base": 0.5,
        "llama.signed": -3,
        "flag": True,
        "numbers": (1, -2, 3),
        "languages": ("de", "日本"),
    }
    assert metadata.tokens == [b"a", b"\xff\xfe", b"", "né".encode()]
    assert metadata.tensors == (
        GgufTensor("token_embd.weight", (64, 4), 8, 0),
        GgufTensor("output_norm.weight", (64,), 0, 288),
    )
    assert [t.size_bytes for t in metadata.tensors] == [64 * 4 // 32 * 34, 64 * 4]
    assert metadata.size_bytes == (tmp_path / "m.gguf").stat().st_size


def test_version_2_is_read(tmp_path, write_gguf):
    assert read_gguf(write_gguf(tmp_path / "m.gguf", {"a": 1}, version=2)).values == {"a": 1}


def test_what_is_large_is_checked_and_not_kept(tmp_path, write_gguf):
    values = {
        "tokenizer.ggml.merges": ["a b"] * (MAX_KEPT_ARRAY + 1),
        "tokenizer.ggml.token_type": [1] * (MAX_KEPT_ARRAY + 1),
        "tokenizer.huggingface.json": "x" * (MAX_KEPT_STRING + 1),
        "last": 7,
    }
    metadata = read_gguf(write_gguf(tmp_path / "m.gguf", values))
    assert metadata.values == {"last": 7}
    assert metadata.skipped == {
        "tokenizer.ggml.merges": MAX_KEPT_ARRAY + 1,
        "tokenizer.ggml.token_type": MAX_KEPT_ARRAY + 1,
        "tokenizer.huggingface.json": MAX_KEPT_STRING + 1,
    }


def test_the_gguf_package_reads_the_same(tmp_path, write_gguf):
    from gguf import GGUFReader

    path = write_gguf(tmp_path / "m.gguf", {k: v for k, v in SMALL.items() if k != "tokenizer.ggml.tokens"}, TENSORS)
    ours, theirs = read_gguf(path), GGUFReader(path)
    for key, value in ours.values.items():
        expected = theirs.fields[key].contents()
        assert (list(value) if isinstance(value, tuple) else value) == expected, key
    assert len(ours.values) == len([f for f in theirs.fields if not f.startswith("GGUF.")])
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, list(mine.shape), mine.type) == (other.name, other.shape.tolist(), other.tensor_type.value)
        assert mine.offset == other.data_offset - theirs.data_offset
        assert mine.size_bytes == other.n_bytes


def test_the_gguf_package_reads_the_same_real_model(shared):
    from gguf import GGUFReader

    path = shared / "models/paceline-coder-3m-q8_0.gguf"
    ours, theirs = read_gguf(path), GGUFReader(path)
    assert ours.tokens == [t.encode() for t in theirs.fields["tokenizer.ggml.tokens"].contents()]
    assert {t.name: t.size_bytes for t in ours.tensors} == {t.name: t.n_bytes for t in theirs.tensors}
    for key, value in ours.values.items():
        if not isinstance(value, tuple):
            assert value == theirs.fields[key].contents(), key


def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path, write_gguf):
    data = write_gguf(tmp_path / "whole.gguf", SMALL, TENSORS).read_bytes()
    # The last tensor is a whole number of aligned blocks, so not even padding can be cut off without harm.
    cut = tmp_path / "cut.gguf"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(ModelFileError):
            read_gguf(cut)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_changed_bytes_are_read_or_refused(tmp_path, write_gguf, changes, cut):
    data = bytearray(write_gguf(tmp_path / "m.gguf", SMALL, TENSORS).read_bytes())
    for position, replacement in changes:
        start = position % len(data)
        data[start : start + len(replacement)] = replacement
    path = tmp_path / "changed.gguf"
    path.write_bytes(data[:cut])
    started = time.monotonic()
    try:
        read_gguf(path)
    except ModelFileError as error:
        assert "changed.gguf" in error.message  # noqa: PT017 - both outcomes are right
    assert time.monotonic() - started < 2


HUGE = 2**63
KEY = struct.pack("<Q", 1) + b"k"


def _header(n_tensors: int, n_keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)


HOSTILE = {
    "nothing": (b"", "is empty"),
    "wrong magic": (b"GGML" + bytes(60), "b'GGML'"),
    "half a magic": (b"GG", "b'GG'"),
    "version 1": (_header(0, 0, version=1), "version 1"),
    "version 4": (_header(0, 0, version=4), "version 4"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "keys beyond the file": (_header(0, 2**40) + bytes(100), "claims 1099511627776 keys"),
    "negative keys": (_header(0, 2**64 - 1) + bytes(100), "keys"),
    "tensors beyond the file": (_header(2**40, 0) + bytes(100), "tensors"),
    "negative tensors": (_header(2**64 - 1, 0) + bytes(100), "tensors"),
    "key longer than the file": (_header(0, 1) + struct.pack("<Q", HUGE) + bytes(50), "ends inside a key"),
    "negative key length": (_header(0, 1) + struct.pack("<q", -1) + bytes(50), "ends inside a key"),
    "key too long": (_header(0, 1) + struct.pack("<Q", 70_000) + b"k" * 70_020, "70000 bytes in a key"),
    "empty key": (_header(0, 1) + struct.pack("<QIB", 0, 0, 1) + bytes(9), "empty key"),
    "same key twice": (_header(0, 2) + (KEY + struct.pack("<II", 4, 1)) * 2, "'k' twice"),
    "key not UTF-8": (_header(0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(9), "invalid UTF-8 in a key"),
    "value not UTF-8": (_header(0, 1) + KEY + struct.pack("<IQ", 8, 1) + b"\xff", "invalid UTF-8"),
    "unknown value type": (_header(0, 1) + KEY + struct.pack("<II", 99, 1), "unknown type 99"),
    "string beyond the file": (_header(0, 1) + KEY + struct.pack("<IQ", 8, HUGE) + bytes(8), "ends inside the value"),
    "array beyond the file": (_header(0, 1) + KEY + struct.pack("<IIQ", 9, 4, 2**62) + bytes(8), "ends inside"),
    "array that overflows": (_header(0, 1) + KEY + struct.pack("<IIQ", 9, 10, 2**61 + 1) + bytes(8), "ends inside"),
    "strings beyond the file": (_header(0, 1) + KEY + struct.pack("<IIQ", 9, 8, 2**61) + bytes(8), "ends inside"),
    "string in an array beyond": (
        _header(0, 1) + KEY + struct.pack("<IIQQ", 9, 8, 1, HUGE) + bytes(8),
        "ends inside the array",
    ),
    "array of arrays": (_header(0, 1) + KEY + struct.pack("<IIQ", 9, 9, 1) + bytes(64), "array of arrays"),
    "array of unknown": (_header(0, 1) + KEY + struct.pack("<IIQ", 9, 77, 1) + bytes(64), "unknown type 77"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(tmp_path, name):
    data, reason = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as error:
        read_gguf(path)
    assert reason in error.value.message


def test_deeply_nested_arrays_are_refused_at_once(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(_header(0, 1) + KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000)
    with pytest.raises(ModelFileError, match="array of arrays"):
        read_gguf(path)


@pytest.mark.parametrize("kind", [4, 8])
def test_a_sparse_file_does_not_make_a_claim_true(tmp_path, kind):
    """The file is as long as the array it claims, and takes no space: reading it through would take hours."""
    path = tmp_path / "m.gguf"
    count = 2**38 // 8
    with path.open("wb") as file:
        file.write(
            _header(0, 1) + struct.pack("<Q", 21) + b"tokenizer.ggml.tokens" + struct.pack("<IIQ", 9, kind, count)
        )
        file.truncate(2**38)
    started = time.monotonic()
    with pytest.raises(ModelFileError):
        read_gguf(path)
    assert time.monotonic() - started < 2


def test_a_token_as_long_as_a_sparse_file_is_not_copied(tmp_path):
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.write(_header(0, 1) + struct.pack("<Q", 21) + b"tokenizer.ggml.tokens")
        file.write(struct.pack("<IIQQ", 9, 8, 1, 2**36))
        file.truncate(2**37)
    with pytest.raises(ModelFileError, match="past its end or limit"):
        read_gguf(path)


TENSOR = struct.pack("<Q", 1) + b"t"
BAD_TENSORS = {
    "dimensions": (TENSOR + struct.pack("<I", 5) + bytes(80), "5 dimensions"),
    "negative shape": (TENSOR + struct.pack("<IQIQ", 1, 2**64 - 1, 0, 0) + bytes(64), "impossible shape"),
    "shape that overflows": (TENSOR + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0) + bytes(64), "impossible shape"),
    "half a block": (TENSOR + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(128), "whole blocks of 32"),
    "unaligned": (TENSOR + struct.pack("<IQIQ", 1, 1, 0, 4) + bytes(64), "unaligned"),
    "offset beyond the file": (TENSOR + struct.pack("<IQIQ", 1, 1, 0, 2**62) + bytes(64), "inside the data"),
    "data beyond the file": (TENSOR + struct.pack("<IQIQ", 1, 2**40, 0, 0) + bytes(64), "inside the data"),
    "name too long": (struct.pack("<Q", 2000) + b"t" * 2100, "2000 bytes in a tensor's name"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused_with_the_reason(tmp_path, name):
    data, reason = BAD_TENSORS[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(_header(1, 0) + data)
    with pytest.raises(ModelFileError) as error:
        read_gguf(path)
    assert reason in error.value.message


def test_the_same_tensor_twice_is_refused(tmp_path, write_gguf):
    with pytest.raises(ModelFileError, match="tensor 't' twice"):
        read_gguf(write_gguf(tmp_path / "m.gguf", {}, [("t", (1,), 0), ("t", (1,), 0)]))


@pytest.mark.parametrize("alignment", [0, 3, 2**32 - 1, (7, True), "32"])
def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path, write_gguf, alignment):
    with pytest.raises(ModelFileError, match="alignment"):
        read_gguf(write_gguf(tmp_path / "m.gguf", {"general.alignment": alignment}))


def test_a_wide_alignment_is_honoured(tmp_path, write_gguf):
    path = write_gguf(tmp_path / "m.gguf", {"general.alignment": 128}, TENSORS, alignment=128)
    assert [t.offset for t in read_gguf(path).tensors] == [0, 384]


def test_an_unknown_tensor_type_is_listed_without_a_size(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(_header(1, 0) + TENSOR + struct.pack("<IQIQ", 1, 7, 12345, 0) + bytes(64))
    (tensor,) = read_gguf(path).tensors
    assert tensor.size_bytes is None
    assert tensor.elements == 7


def test_tokens_that_are_no_strings_are_refused(tmp_path, write_gguf):
    with pytest.raises(ModelFileError, match="no array of strings"):
        read_gguf(write_gguf(tmp_path / "m.gguf", {"tokenizer.ggml.tokens": [1, 2]}))


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "dir.gguf").mkdir()
    for name in ("pipe.gguf", "dir.gguf", "absent.gguf"):
        with pytest.raises(ModelFileError):
            read_gguf(tmp_path / name)
