"""Read the metadata of a GGUF file: bounded, memory-mapped, without its weights.

The layout is that of ggml's `gguf.h`, versions 2 and 3, little endian. A file is not trusted: every count, length
and offset is checked against the file's size (and a limit of its own) before it is used, so the worst a file can
do is raise `ModelFileError`. Arrays of arrays are refused, as llama.cpp refuses them.
"""

from __future__ import annotations

import mmap
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paceline.errors import ModelFileError
from paceline.formats.ggml_types import TENSOR_TYPES

Scalar = int | float | bool | str

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_STRINGS = 1 << 23
"""Strings in all arrays together; the largest vocabularies hold a million with their merges."""
MAX_TOKENS_BYTES = 1 << 28
MAX_KEPT_STRING = 1 << 20
MAX_KEPT_ARRAY = 4096
MAX_DIMENSIONS = 4

_TOKENS = "tokenizer.ggml.tokens"
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_NUMBER_SIZES = {kind: struct.calcsize("<" + code) for kind, code in _NUMBERS.items()}
_DAMAGED = "the file is damaged or was not downloaded completely; download it again"


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file: where it lies and what it is made of."""

    name: str
    shape: tuple[int, ...]
    type: int
    """ggml's number of the type; `TENSOR_TYPES` knows name and size of most."""
    offset: int
    """Bytes from the start of the tensor data."""

    @property
    def elements(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count

    @property
    def size_bytes(self) -> int | None:
        """None for a type this reader does not know."""
        if self.type not in TENSOR_TYPES:
            return None
        _, block, block_bytes = TENSOR_TYPES[self.type]
        return self.elements // block * block_bytes


@dataclass(frozen=True)
class GgufMetadata:
    """What a GGUF file says about itself."""

    path: Path
    version: int
    values: Mapping[str, Scalar | tuple[Scalar, ...]]
    """Scalars, and arrays small enough to keep."""
    skipped: Mapping[str, int]
    """Keys whose value was checked but not kept -> its length (elements, or bytes of a string)."""
    tensors: tuple[GgufTensor, ...]
    tokens: Sequence[bytes] | None
    """`tokenizer.ggml.tokens` as the file holds it; None when the file has no such array."""
    size_bytes: int

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def flag(self, key: str) -> bool | None:
        value = self.values.get(key)
        return value if isinstance(value, bool) else None


def read_gguf(path: Path) -> GgufMetadata:
    """Read the metadata of one file. Raises `ModelFileError` with the offset and the reason."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelFileError(f"{path.name} is not a regular file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size == 0:
                raise ModelFileError(f"{path.name} is empty", help=_DAMAGED)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except OSError as error:
        raise ModelFileError(f"{path.name} cannot be read: {error.strerror or error}") from error


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._end = len(data)
        self._pos = 0
        self._strings_left = MAX_STRINGS
        self._values: dict[str, Scalar | tuple[Scalar, ...]] = {}
        self._skipped: dict[str, int] = {}
        self._tokens: list[bytes] | None = None

    def read(self) -> GgufMetadata:
        version = self._version()
        n_tensors = self._count("tensors", MAX_TENSORS, at_least=8 + 4 + 4 + 8)
        n_keys = self._count("keys", MAX_KEYS, at_least=8 + 1 + 4 + 1)
        for _ in range(n_keys):
            self._key_and_value()
        alignment = self._alignment()
        tensors = self._tensors(n_tensors, alignment)
        return GgufMetadata(
            path=self._path,
            version=version,
            values=self._values,
            skipped=self._skipped,
            tensors=tensors,
            tokens=self._tokens,
            size_bytes=self._end,
        )

    def _version(self) -> int:
        magic = bytes(self._data[:4])
        if magic != b"GGUF":
            raise self._error(f"starts with {magic!r}, a GGUF file with b'GGUF'", at=0)
        self._pos = 4
        version = self._number(4)
        if version in (0x02000000, 0x03000000):
            raise ModelFileError(
                f"{self._path.name} is a big-endian GGUF file; only little-endian ones can be read",
                help="download the model for little-endian machines (x86-64, ARM)",
            )
        if version not in (2, 3):
            raise ModelFileError(
                f"{self._path.name} has GGUF version {version}; versions 2 and 3 can be read",
                help="download the model again, or convert it with a current llama.cpp",
            )
        return version

    def _key_and_value(self) -> None:
        start = self._pos
        key = self._text("a key", limit=0xFFFF)
        if not key:
            raise self._error("has an empty key", at=start)
        if key in self._values or key in self._skipped or (key == _TOKENS and self._tokens is not None):
            raise self._error(f"has the key {key!r} twice", at=start)
        kind = self._number(4)
        if kind == _ARRAY:
            self._array(key)
        elif kind == _STRING:
            self._string_value(key)
        else:
            self._values[key] = self._numbers(key, kind, 1)[0]

    def _string_value(self, key: str) -> None:
        length = self._length(f"the value of {key!r}")
        if length > MAX_KEPT_STRING:
            self._skipped[key] = length
            self._pos += length
        else:
            self._values[key] = self._decode(length, f"the value of {key!r}")

    def _array(self, key: str) -> None:
        start = self._pos
        kind = self._number(4)
        count = self._number(8)
        if kind == _STRING:
            self._string_array(key, count, start)
        elif key == _TOKENS:
            raise self._error(f"has a {key!r} that is no array of strings", at=start)
        elif kind == _ARRAY:
            raise self._error(f"has an array of arrays in {key!r}, which no engine reads", at=start)
        elif kind in _NUMBERS and count > MAX_KEPT_ARRAY:
            self._need(count * _NUMBER_SIZES[kind], f"the array {key!r}")
            self._pos += count * _NUMBER_SIZES[kind]
            self._skipped[key] = count
        else:
            self._values[key] = self._numbers(key, kind, count)

    def _string_array(self, key: str, count: int, start: int) -> None:
        self._need(count * 8, f"the array {key!r} of {count} strings")
        self._strings_left -= count
        if self._strings_left < 0:
            raise self._error(f"holds more than {MAX_STRINGS} strings in its arrays", at=start)
        if key == _TOKENS:
            self._tokens = self._byte_strings(key, count)
            return
        first = self._pos
        self._skip_strings(key, count)
        if count <= MAX_KEPT_ARRAY and self._pos - first <= MAX_KEPT_STRING:
            self._pos = first
            self._values[key] = tuple(self._text(f"the array {key!r}") for _ in range(count))
        else:
            self._skipped[key] = count

    def _byte_strings(self, key: str, count: int) -> list[bytes]:
        """One pass over the array; this loop and the next are where reading a vocabulary spends its time."""
        strings: list[bytes] = []
        append, data, unpack, pos = strings.append, self._data, struct.Struct("<Q").unpack_from, self._pos
        limit = min(self._end, pos + MAX_TOKENS_BYTES)
        try:
            for _ in range(count):
                (length,) = unpack(data, pos)
                start = pos + 8
                pos = start + length
                if pos > limit:
                    raise self._error(f"has a string of {length} bytes in {key!r}, past its end or limit", at=start - 8)
                append(data[start:pos])
        except (struct.error, OverflowError):
            raise self._error(f"ends inside the array {key!r}", at=pos) from None
        self._pos = pos
        return strings

    def _skip_strings(self, key: str, count: int) -> None:
        data, unpack, pos = self._data, struct.Struct("<Q").unpack_from, self._pos
        try:
            for _ in range(count):
                pos += 8 + unpack(data, pos)[0]
        except (struct.error, OverflowError):
            pos = self._end + 1
        if pos > self._end:
            raise self._error(f"ends inside the array {key!r}", at=self._pos)
        self._pos = pos

    def _alignment(self) -> int:
        alignment = self._values.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 31 or alignment & (alignment - 1):
            raise self._error(f"has the alignment {alignment!r}, which is no power of two", at=self._pos)
        return alignment

    def _tensors(self, count: int, alignment: int) -> tuple[GgufTensor, ...]:
        tensors: list[GgufTensor] = []
        names: set[str] = set()
        for _ in range(count):
            start = self._pos
            tensor = self._tensor()
            if tensor.name in names:
                raise self._error(f"has the tensor {tensor.name!r} twice", at=start)
            if tensor.offset % alignment:
                raise self._error(f"has the tensor {tensor.name!r} at an unaligned offset", at=start)
            names.add(tensor.name)
            tensors.append(tensor)
        data_start = -(-self._pos // alignment) * alignment
        for tensor in tensors:
            if data_start + tensor.offset + (tensor.size_bytes or 0) > self._end:
                raise self._error(f"ends inside the data of the tensor {tensor.name!r}", at=data_start + tensor.offset)
        return tuple(tensors)

    def _tensor(self) -> GgufTensor:
        start = self._pos
        name = self._text("a tensor's name", limit=1024)
        dimensions = self._number(4)
        if dimensions > MAX_DIMENSIONS:
            raise self._error(f"has the tensor {name!r} with {dimensions} dimensions", at=start)
        shape = tuple(self._number(8) for _ in range(dimensions))
        tensor = GgufTensor(name, shape, self._number(4), self._number(8))
        if tensor.elements >= 1 << 63 or any(n >= 1 << 63 for n in shape):
            raise self._error(f"has the tensor {name!r} of impossible shape {shape}", at=start)
        block = TENSOR_TYPES.get(tensor.type, ("", 1, 0))[1]
        if (shape[0] if shape else 1) % block:
            raise self._error(f"has the tensor {name!r} whose rows are no whole blocks of {block}", at=start)
        return tensor

    def _count(self, what: str, limit: int, at_least: int) -> int:
        """A count from the header, of things that take at least so many bytes each."""
        start = self._pos
        count = self._number(8)
        if count > limit or count * at_least > self._end - self._pos:
            raise self._error(f"claims {count} {what}, more than fit in {self._end} bytes", at=start)
        return count

    def _numbers(self, key: str, kind: int, count: int) -> tuple[Scalar, ...]:
        if kind not in _NUMBERS:
            raise self._error(f"has a value of unknown type {kind} in {key!r}", at=self._pos)
        size = count * _NUMBER_SIZES[kind]
        self._need(size, f"the value of {key!r}")
        values = struct.unpack_from(f"<{count}{_NUMBERS[kind]}", self._data, self._pos)
        self._pos += size
        return values

    def _number(self, size: int) -> int:
        self._need(size, "a number")
        value = int.from_bytes(self._data[self._pos : self._pos + size], "little")
        self._pos += size
        return value

    def _text(self, what: str, limit: int = MAX_KEPT_STRING) -> str:
        start = self._pos
        length = self._length(what)
        if length > limit:
            raise self._error(f"has {length} bytes in {what}; at most {limit} make sense", at=start)
        return self._decode(length, what)

    def _length(self, what: str) -> int:
        length = self._number(8)
        self._need(length, f"{what} of {length} bytes")
        return length

    def _decode(self, length: int, what: str) -> str:
        start = self._pos
        self._pos += length
        try:
            return str(self._data[start : self._pos], "utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"has invalid UTF-8 in {what}", at=start + error.start) from None

    def _need(self, size: int, what: str) -> None:
        if size > self._end - self._pos:
            raise self._error(f"ends inside {what}", at=self._pos)

    def _error(self, reason: str, *, at: int) -> ModelFileError:
        return ModelFileError(f"{self._path.name} {reason} (at byte {at})", help=_DAMAGED)
