"""Packing weights before the libraries are there that load a model. No torch.

Importing torch takes one core a second or two. Meanwhile the compiled kernels' threads pack, straight out of the mapped
files, what layers will ask them to pack: the matrices of the dense network, whose names and sizes follow from its facts.
Loading goes its ordinary way and checks all that it would have checked; a layer then takes what is packed already instead of
packing it, the same bytes by the same code. What is not as expected here is left to the ordinary way, errors included.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from octavo.core.errors import OctavoError
from octavo.kernels.cpu import native
from octavo.kernels.gemm.format_table import head_format, weight_format
from octavo.models.facts import ModelFacts
from octavo.models.files import Stored, read_header, weight_files
from octavo.models.matrices import DENSE, products
from octavo.models.storage import WeightStorage

_DTYPES = {"BF16": ("bfloat16", 2), "F32": ("float32", 4)}
_ALIGNMENT = 8
"""Bytes; what safetensors promises of each tensor."""
_PANEL = 16
"""kPanel of csrc/cpu/gemm.h: parts of a merged weight are packed apart where each is whole panels."""


class Matrix(NamedTuple):
    """A weight that a layer will have packed."""

    names: tuple[str, ...]
    """Of the checkpoint's tensors, stacked along the outputs."""
    num_outputs: tuple[int, ...]
    """Of each."""
    num_inputs: int
    weights: str
    """Format in which it is kept (`kernels/gemm/format_table.py`); "" for none."""


def matrices(facts: ModelFacts, quantization: str) -> Iterator[Matrix]:
    """Those of the dense network, in the order in which layers pack."""
    for names, num_outputs, num_inputs in products(facts):
        stored = tuple(f"{name}.weight" for name in names)
        yield Matrix(stored, num_outputs, num_inputs, quantization)
    head = "model.embed_tokens.weight" if facts.is_tied else "lm_head.weight"
    yield Matrix((head,), (facts.vocab_size,), facts.hidden_size, head_format(quantization))


class _Mapped(NamedTuple):
    """A file of the checkpoint."""

    path: Path
    identity: tuple[int, ...]
    data: memoryview
    tensors: dict[str, Stored]


class PackedAhead:
    """Owner of the threads that pack, and of the mapped files until all is taken."""

    def __init__(self, files: list[_Mapped]) -> None:
        self._files = files
        self._packing = native.native.PackingAhead()
        self._index: dict[tuple[tuple[str, ...], str], int] = {}
        self.names: set[str] = set()
        """Tensors that are packed here, so that nobody else needs to read them."""
        self.share = 0.0
        """Of the work, how much was done when the first weight was asked for."""

    def is_current(self) -> bool:
        """Whether the checkpoint's files are still those that were mapped."""
        try:
            return all(_identity(os.stat(file.path)) == file.identity for file in self._files)
        except OSError:
            return False

    def take(self, names: tuple[str, ...], weights: str) -> Any:
        """What was packed of `names` in the format `weights`, once; None where that is for the caller to do.

        Raises:
            MemoryError: there was no room for it.
            LookupError: they were packed otherwise, so that nobody has read them.
        """
        index = self._index.pop((names, weights), None)
        if index is None:
            if self.names.intersection(names):
                raise LookupError(f"{', '.join(names)}: not packed together in {weights or 'full'}")
            return None
        self.share = self.share or self._packing.share
        return self._packing.take(index)

    def add(self, matrix: Matrix, dtype: str) -> None:
        """Have it packed, if the checkpoint has it as expected, in `dtype`."""
        found = [
            (file.data, file.tensors[name])
            for name in matrix.names
            for file in self._files
            if name in file.tensors
        ]
        if len(found) != len(matrix.names) or any(n % _PANEL for n in matrix.num_outputs[:-1]):
            return
        for (_, stored), rows in zip(found, matrix.num_outputs, strict=True):
            name, width = _DTYPES.get(stored.dtype, ("", 0))
            num_bytes = rows * matrix.num_inputs * width
            if name != dtype or stored.shape != (rows, matrix.num_inputs):
                return
            if stored.end - stored.begin != num_bytes or stored.begin % _ALIGNMENT:
                return
        form = weight_format(matrix.weights) if matrix.weights else None
        index = self._packing.add(
            [data[stored.begin : stored.end] for data, stored in found],
            matrix.num_outputs,
            matrix.num_inputs,
            dtype,
            0 if form is None else form.bits,
            0 if form is None else form.group,
            form is not None and form.has_zeros,
        )
        self._index[(matrix.names, matrix.weights)] = index
        self.names.update(matrix.names)

    def start(self, num_threads: int) -> None:
        """Begin, with so many threads beside the caller's."""
        self._packing.start(num_threads)


def pack_ahead(
    folder: Path, facts: ModelFacts, storage: WeightStorage, quantization: str, num_threads: int
) -> PackedAhead | None:
    """Begin to pack the weights in `folder` as a CPU's kernels keep them; None where that is not known beforehand.

    `num_threads` is what the machine has, this one's included.
    """
    is_known = facts.network == DENSE and facts.stored is None and storage.is_repacked
    if not is_known or native.missing() is not None:
        return None
    try:
        files = [_map(path) for path in weight_files(folder)]
        ahead = PackedAhead(files)
        for matrix in matrices(facts, quantization):
            ahead.add(matrix, storage.dtype)
        ahead.start(max(1, num_threads - 1))
    except (OctavoError, OSError, ValueError, RuntimeError):
        return None  # loading will say what is wrong, if it is
    return ahead


def _map(path: Path) -> _Mapped:
    with path.open("rb") as file:
        told = os.fstat(file.fileno())
        tensors = read_header(file, told.st_size)
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return _Mapped(path, _identity(told), data, tensors)


def _identity(told: os.stat_result) -> tuple[int, ...]:
    return (told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns)
