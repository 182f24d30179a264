"""The header of a GGUF file, read in plain Python from a mapped file: metadata, and where each tensor lies.

What the file says is believed of nothing before it is checked: every count is bounded by what the file could hold, every
string and array by its own limit, every tensor by the file's end. Numbers are Python's, so no product wraps round. It
knows neither what the metadata means nor how tensors are computed from their bytes. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import NamedTuple, NoReturn

from octavo.core.errors import ModelError

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)

MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 256
MAX_STRING_BYTES = 16 << 20
MAX_VALUES = 16 << 20
"""Values of all arrays together; the largest vocabularies have a quarter of a million tokens, merges and types each."""
MAX_NESTING = 4
"""Arrays in arrays; the format allows them, and nobody writes any."""
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 48
MAX_PARTS = 1024
ALIGNMENTS = tuple(1 << power for power in range(3, 17))
DEFAULT_ALIGNMENT = 32

Value = str | bool | int | float | tuple["Value", ...]


class Kind(NamedTuple):
    """How a tensor type keeps values."""

    block_values: int
    block_bytes: int


READ_KINDS: dict[str, Kind] = {
    "F32": Kind(1, 4),
    "F16": Kind(1, 2),
    "BF16": Kind(1, 2),
    "Q4_0": Kind(32, 18),
    "Q4_1": Kind(32, 20),
    "Q5_0": Kind(32, 22),
    "Q5_1": Kind(32, 24),
    "Q8_0": Kind(32, 34),
    "Q4_K": Kind(256, 144),
    "Q5_K": Kind(256, 176),
    "Q6_K": Kind(256, 210),
}
KIND_NAMES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Every type of ggml.h that a file may name; those that are not in `READ_KINDS` are refused."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}  # fmt: skip
"""Value type -> struct's letter; 8 is a string, 9 an array."""
_STRUCTS = {letter: struct.Struct("<" + letter) for letter in _SCALARS.values()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class Tensor(NamedTuple):
    """Where one tensor lies; everything in it has been checked against the file."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in torch; the file has them the other way round."""
    kind: str
    """Row of `READ_KINDS`."""
    offset: int
    """From the start of the file, bytes."""
    num_bytes: int


class Header(NamedTuple):
    """What a file says before its tensors' bytes."""

    path: str
    metadata: dict[str, Value]
    tensors: dict[str, Tensor]


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, there or not; without the ending, whether it is one, as in stores that name files by
    their hash.
    """
    if path.suffix.lower() == SUFFIX:
        return not path.is_dir()
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_parts(path: Path) -> tuple[Header, ...]:
    """The header of a file and, where it is the first of several, those of the others. The first has the metadata.

    Raises:
        ModelError: as for `read_header`; a part is missing, or out of order; a tensor is in two of them.
    """
    first = read_header(path)
    count = first.metadata.get("split.count", 1)
    if count in (0, 1):
        return (first,)
    match = _PART.fullmatch(path.name)
    if not isinstance(count, int) or count > MAX_PARTS or match is None:
        raise _error(
            str(path),
            f"split.count is {count!r}; expected 1 to {MAX_PARTS}, and a name such as x-00001-of-00002.gguf",
            fix="Keep the names that the parts were downloaded with.",
        )
    if first.metadata.get("split.no") != 0:
        raise _error(
            str(path),
            f"this is part {match['number']} of {count}",
            fix="Give the first part; the others are found beside it.",
        )
    parts = [first]
    for number in range(2, count + 1):
        name = f"{match['stem']}-{number:05}-of-{match['count']}.gguf"
        part = read_header(path.with_name(name))
        if part.metadata.get("split.no") != number - 1:
            raise _error(part.path, f"split.no is not {number - 1}, as its name says")
        twice = next(
            (name for known in parts for name in known.tensors if name in part.tensors), ""
        )
        if twice:
            raise _error(part.path, f"tensor {twice!r} is in another part, too")
        parts.append(part)
    return tuple(parts)


def read_header(path: Path) -> Header:
    """The checked header of one file.

    Raises:
        ModelError: no such file, not GGUF, of another version or byte order, or anything in it that cannot be.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < 4:
                raise _error(str(path), f"it has {size} bytes; expected a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return parse(mapped, str(path))
    except OSError as error:
        raise _error(
            str(path), f"cannot be read: {error.strerror}", fix="Give the path of a file."
        ) from error


def parse(data: bytes | mmap.mmap, where: str) -> Header:
    """The checked header of a whole file's bytes; `where` is its name in errors.

    Raises:
        ModelError: as for `read_header`.
    """
    reader = _Reader(data, where)
    _check_version(reader)
    num_tensors = reader.count("tensors", MAX_TENSORS, least_bytes=24)
    num_keys = reader.count("metadata keys", MAX_KEYS, least_bytes=13)
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        key = reader.string(MAX_KEY_BYTES, "a metadata key")
        if key in metadata:
            reader.refuse(f"metadata key {key!r:.80} is there twice")
        metadata[key] = reader.value(reader.scalar("I"), key)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(alignment, bool) or alignment not in ALIGNMENTS:
        reader.refuse(
            f"general.alignment is {alignment!r:.80}; expected a power of two, 8 to 65536"
        )
    rows = [_read_row(reader) for _ in range(num_tensors)]
    start = -(-reader.position // int(alignment)) * int(alignment)
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset in rows:
        if name in tensors:
            reader.refuse(f"tensor {name!r} is there twice")
        if offset % int(alignment):
            reader.refuse(f"tensor {name!r} begins at {offset}; expected a multiple of {alignment}")
        tensors[name] = _place(reader, name, shape, kind, start + offset)
    _check_overlap(reader, tensors)
    return Header(where, metadata, tensors)


class _Reader:
    """A place in the bytes that moves on; every read is checked against the end first."""

    def __init__(self, data: bytes | mmap.mmap, where: str) -> None:
        self._data = data
        self._where = where
        self.size = len(data)
        self.position = 0
        self._values_left = MAX_VALUES

    def refuse(self, what: str) -> NoReturn:
        raise _error(self._where, what)

    def take(self, count: int, what: str) -> int:
        """Where the next `count` bytes begin."""
        begin = self.position
        if count > self.size - begin:
            self.refuse(f"{what} at byte {begin} takes {count} bytes, and the file has {self.size}")
        self.position = begin + count
        return begin

    def scalar(self, letter: str, what: str = "a number") -> int | float:
        layout = _STRUCTS[letter]
        found: int | float = layout.unpack_from(self._data, self.take(layout.size, what))[0]
        return found

    def count(self, what: str, most: int, *, least_bytes: int) -> int:
        """A count of things of which each takes at least so many bytes."""
        found = int(self.scalar("Q", f"the number of {what}"))
        if found > most:
            self.refuse(f"it claims {found} {what}; at most {most} are read")
        if found * least_bytes > self.size - self.position:
            self.refuse(f"it claims {found} {what}, and the file has {self.size} bytes")
        return found

    def string(self, most: int, what: str) -> str:
        size = int(self.scalar("Q", what))
        if size > most:
            self.refuse(
                f"{what} at byte {self.position} claims {size} bytes; at most {most} are read"
            )
        begin = self.take(size, what)
        return self._text(self._data[begin : begin + size], what)

    def value(self, kind: int | float, key: str, depth: int = 0) -> Value:
        """The value of a metadata key, of this type."""
        if kind == _STRING:
            return self.string(MAX_STRING_BYTES, f"the value of {key!r:.80}")
        if kind == _ARRAY:
            return self._array(key, depth)
        letter = _SCALARS.get(int(kind))
        if letter is None:
            self.refuse(f"{key!r:.80} has the value type {kind}; expected 0 to 12")
        found = self.scalar(letter, f"the value of {key!r:.80}")
        return self._truth(found, key) if kind == _BOOL else found

    def _array(self, key: str, depth: int) -> tuple[Value, ...]:
        if depth == MAX_NESTING:
            self.refuse(f"{key!r:.80} has arrays within arrays, more than {MAX_NESTING} deep")
        kind = int(self.scalar("I", f"the array {key!r:.80}"))
        letter = _SCALARS.get(kind)
        if letter is None and kind not in (_STRING, _ARRAY):
            self.refuse(f"{key!r:.80} is an array of the value type {kind}; expected 0 to 12")
        size = _STRUCTS[letter].size if letter else 8 if kind == _STRING else 12
        number = self.count(f"values of {key!r:.80}", self._values_left, least_bytes=size)
        self._values_left -= number
        if kind == _STRING:
            return self._strings(number, key)
        if letter is None:
            return tuple(self._array(key, depth + 1) for _ in range(number))
        begin = self.take(number * size, f"the array {key!r:.80}")
        found = struct.unpack_from(f"<{number}{letter}", self._data, begin)
        return tuple(self._truth(one, key) for one in found) if kind == _BOOL else found

    def _strings(self, number: int, key: str) -> tuple[str, ...]:
        """`number` strings; what `string` does, without its calls: a vocabulary has hundreds of thousands."""
        data, end, position = self._data, self.size, self.position
        unpack = _STRUCTS["Q"].unpack_from
        found: list[bytes] = []
        for _ in range(number):
            begin = position + 8
            size = unpack(data, position)[0] if begin <= end else end
            if size > MAX_STRING_BYTES or size > end - begin:
                self.refuse(f"string {len(found)} of {key!r:.80} does not lie within the file")
            position = begin + size
            found.append(data[begin:position])
        self.position = position
        try:
            return tuple(str(one, "utf-8") for one in found)
        except UnicodeDecodeError:
            self.refuse(f"{key!r:.80} holds a string that is not UTF-8")

    def _text(self, raw: bytes, what: str) -> str:
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8: {raw[:40]!r}")

    def _truth(self, value: int | float, key: str) -> bool:
        if value not in (0, 1):
            self.refuse(f"{key!r:.80} holds the truth value {value}; expected 0 or 1")
        return bool(value)


def _check_version(reader: _Reader) -> None:
    begin = reader.take(4, "the magic")
    magic = bytes(reader._data[begin : begin + 4])
    if magic != MAGIC:
        reader.refuse(f"it begins with {magic!r}; expected {MAGIC!r}")
    version = int(reader.scalar("I", "the version"))
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version:
        raise _error(
            reader._where,
            "it is big-endian; only little-endian files are read",
            fix="Get the little-endian file.",
        )
    reader.refuse(f"it is GGUF version {version}; versions 2 and 3 are read")


def _read_row(reader: _Reader) -> tuple[str, tuple[int, ...], str, int]:
    """(name, shape rows first, kind, offset) of the next tensor, as the file says them."""
    name = reader.string(MAX_NAME_BYTES, "a tensor's name")
    dimensions = int(reader.scalar("I", f"tensor {name!r}"))
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        reader.refuse(
            f"tensor {name!r} has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}"
        )
    sizes = [int(reader.scalar("Q", f"tensor {name!r}")) for _ in range(dimensions)]
    number = int(reader.scalar("I", f"tensor {name!r}"))
    kind = KIND_NAMES.get(number, f"type {number}")
    if kind not in READ_KINDS:
        raise _error(
            reader._where,
            f"tensor {name!r} is {kind}; {', '.join(READ_KINDS)} are read",
            fix="Use a file of another quantization: Q4_K_M and Q8_0 have these types only.",
        )
    return name, tuple(reversed(sizes)), kind, int(reader.scalar("Q", f"tensor {name!r}"))


def _place(reader: _Reader, name: str, shape: tuple[int, ...], kind: str, offset: int) -> Tensor:
    """The tensor, if it has values, whole blocks, and lies within the file."""
    elements = 1
    for size in shape:
        elements *= size
        if not 0 < elements <= MAX_ELEMENTS:
            reader.refuse(f"tensor {name!r} has the shape {list(shape)}; expected 1 to 2^48 values")
    values, num_bytes = READ_KINDS[kind]
    if shape[-1] % values:
        reader.refuse(
            f"tensor {name!r} has rows of {shape[-1]} values; {kind} has blocks of {values}"
        )
    num_bytes *= elements // values
    if num_bytes > reader.size - offset:
        reader.refuse(
            f"tensor {name!r} would end at byte {offset + num_bytes}, and the file has {reader.size}"
        )
    return Tensor(name, shape, kind, offset, num_bytes)


def _check_overlap(reader: _Reader, tensors: dict[str, Tensor]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda one: one.offset):
        if tensor.offset < end:
            reader.refuse(f"tensors {before!r} and {tensor.name!r} overlap")
        end, before = tensor.offset + tensor.num_bytes, tensor.name


def _error(
    where: str,
    what: str,
    *,
    fix: str = "Check that the download is complete, or get the file again.",
) -> ModelError:
    return ModelError(f"{where}: {what}.", code="E-MODEL-07", fix=fix)
