"""Which safetensors files a checkpoint has, and what their headers say. No torch; nothing of a tensor is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO, NamedTuple

from octavo.core.errors import ModelError
from octavo.models.config import read_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
AUTOGPTQ_NAMES = "gptq_model-*.safetensors"
"""Of the single file that old versions of AutoGPTQ wrote: with bits and group, gptq_model-4bit-128g."""
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
_LENGTH_BYTES = 8


class Stored(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: str
    """By the format's name: BF16, F32."""
    shape: tuple[int, ...]
    begin: int
    """Bytes from the file's beginning."""
    end: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint, in name order.

    Raises:
        ModelError: none, or the index names a file that is not there or not inside the folder.
    """
    index = folder / INDEX_NAME
    if not index.is_file():
        single = folder / SINGLE_NAME
        if single.is_file():
            return (single,)
        named = sorted(folder.glob(AUTOGPTQ_NAMES))
        if len(named) == 1:
            return (named[0],)
        raise ModelError(
            f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}.",
            code="E-MODEL-05",
            fix="Octavo loads safetensors and GGUF; convert other formats first.",
        )
    mapped = read_json(index).get("weight_map")
    if not isinstance(mapped, dict) or not all(isinstance(name, str) for name in mapped.values()):
        raise ModelError(f"{index}: weight_map is not an object of strings.", code="E-MODEL-05")
    files = []
    for name in sorted(set(mapped.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{index} names {name!r}, no file of that folder.", code="E-MODEL-05")
        files.append(folder / name)
    return tuple(files)


def read_header(file: BinaryIO, num_bytes: int) -> dict[str, Stored]:
    """The tensors of an open safetensors file of `num_bytes`, each within the file.

    Raises:
        ValueError: it is none.
    """
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    begin = _LENGTH_BYTES + length
    if not 2 <= length <= min(MAX_HEADER_BYTES, num_bytes - _LENGTH_BYTES):
        raise ValueError(f"a header of {length} bytes")
    try:
        header = json.loads(file.read(length))
    except RecursionError as error:
        raise ValueError("a header that is nested too deeply") from error
    if not isinstance(header, dict):
        raise ValueError("a header that is no object")
    header.pop("__metadata__", None)
    return {name: _stored(told, begin, num_bytes) for name, told in header.items()}


def _stored(told: object, begin: int, num_bytes: int) -> Stored:
    match told:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]}:
            sizes = tuple(size for size in shape if isinstance(size, int) and size >= 0)
            if len(sizes) == len(shape) and 0 <= first <= last <= num_bytes - begin:
                return Stored(dtype, sizes, begin + first, begin + last)
    raise ValueError("a tensor that is not described")
